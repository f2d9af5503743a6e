"""Commands of glint in processes of their own, forked from one that has imported everything.

`python -m glint` spends seconds on imports before it does anything, a thousand times in the tests.
One process imports once and forks for each command: its own memory, files, signals and exit code,
as after an exec. `command()` gives an executable that does so, to be called as `glint` is;
tests of start-up, of signals and of imports run `python -m glint` itself.
"""

from __future__ import annotations

import array
import atexit
import contextlib
import functools
import importlib
import importlib.util
import json
import os
import pkgutil
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

CLIENT = """#!{python} -ISE
import array, json, os, socket, sys
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
text = json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]).encode("utf-8", "surrogateescape")
fds = array.array("i", [0, 1, 2])
line.sendmsg([len(text).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
line.sendall(text)
code = line.recv(8)
os._exit(int.from_bytes(code, "big") if len(code) == 8 else 70)
"""
PARTS = ("cli", "train", "pipelines", "synth", "evals", "review", "jobs", "models", "stream", "nn")

# What these import only when they work; each takes seconds.
MORE = ("torch._dynamo", "torch.distributed.tensor", "torch.onnx", "torch.utils.tensorboard",
        "scipy.stats", "scipy.optimize", "scipy.spatial", "onnx",
        "simplejpeg", "PIL.Image",
        "jinja2")  # fmt: skip


@functools.cache
def command() -> Path:
    """Start the process and give the executable `glint`; both go when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="glint-forks-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    address = folder / "socket"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    served = subprocess.Popen(
        [sys.executable, __file__, str(address), str(os.getpid())], env=env,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert served.stdout is not None
    assert served.stdout.readline() == b"ready\n", "the process that forks did not start"
    path = folder / "glint"
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)
    return path


def _serve(address: str, parent: int) -> None:
    for part in PARTS:
        package = importlib.import_module(f"glint.{part}")
        for module in pkgutil.walk_packages(package.__path__, f"glint.{part}."):
            with contextlib.suppress(ImportError):
                importlib.import_module(module.name)
    for name in MORE:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    spec = importlib.util.find_spec("glint.__main__")
    server = socket.socket(socket.AF_UNIX)
    server.bind(address)
    server.listen(64)
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    names.remove("jemalloc_bg_thd") if "jemalloc_bg_thd" in names else None  # it knows of forks
    assert len(names) == 1, f"imports started threads, do not fork: {names}"
    print("ready", flush=True)
    server.settimeout(5)
    while True:
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        try:
            line, _ = server.accept()
        except TimeoutError:
            if os.getppid() != parent:
                return
            continue
        if os.fork() == 0:  # waits for the command, so that this one goes on
            server.close()
            _attend(line, spec)
        line.close()


def _attend(line: socket.socket, spec: object) -> None:
    fds = array.array("i")
    head, anc, _, _ = line.recvmsg(8, socket.CMSG_SPACE(3 * fds.itemsize))
    fds.frombytes(anc[0][2])
    size, text = int.from_bytes(head, "big"), b""
    while len(text) < size:
        text += line.recv(size - len(text))
    args, env, folder = json.loads(text.decode("utf-8", "surrogateescape"))
    child = os.fork()
    if child == 0:
        line.close()
        _become(args, env, folder, list(fds), spec)
    for fd in fds:
        os.close(fd)
    gone = threading.Event()

    def watch() -> None:  # the caller is gone, killed at its timeout: so is the command
        if not line.recv(1) and not gone.is_set():
            os.kill(child, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
    _, status = os.waitpid(child, 0)
    gone.set()
    code = os.waitstatus_to_exitcode(status)
    with contextlib.suppress(OSError):
        line.sendall((code if code >= 0 else 128 - code).to_bytes(8, "big"))
    os._exit(0)


def _become(
    args: list[str], env: dict[str, str], folder: str, fds: list[int], spec: object
) -> None:
    for at, fd in enumerate(fds):
        os.dup2(fd, at)
    os.closerange(3, 256)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(folder)
    sys.path[0] = folder  # as `python -m` has it
    sys.argv = [str(getattr(spec, "origin", "glint")), *args]
    sys.modules["__main__"].__spec__ = spec  # type: ignore[assignment]
    for number, stream in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        mode = "r" if number == 0 else "w"
        setattr(sys, stream, os.fdopen(number, mode, closefd=False, buffering=1))
    time.tzset()
    code = 0
    try:
        from glint.cli.app import main

        main()
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 1
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
    threading._shutdown()  # type: ignore[attr-defined]  # as an interpreter ends
    atexit._run_exitfuncs()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
