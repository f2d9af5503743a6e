/* Counts, fails, kills at, and writes down the calls that change files below a folder.

   Preloaded by prove_stages.py; calls_arm() begins. Only calls through the C library are seen, of
   all threads, each before it is made; a file that is opened to be changed counts where it is made
   or cut. What is mapped is not seen. The wall clock stands still while armed: what is written
   with a date is written alike each time. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char under[PATH_MAX];
static size_t length;
static long count, target;
static int failure, log_fd = -1;
static time_t now;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* at: the call, from 1, before which the process is killed or, with an error, that fails with it;
   0 = none. log: a file that gets a line, and what was written, for each call that was made. */
void calls_arm(const char *folder, long at, int error, const char *log, long seconds) {
    count = 0, target = at, failure = error, now = seconds;
    if (log) log_fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    snprintf(under, sizeof under, "%s", folder);
    length = strlen(under);
}

long calls_count(void) { return count; }

static const char *of_fd(int fd, char *path) {
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(name, path, PATH_MAX - 1);
    path[n < 0 ? 0 : n] = 0;
    return path;
}

static const char *full(int dir, const char *name, char *path) {
    if (!name || name[0] == '/') return name ? name : "";
    char top[PATH_MAX];
    if (dir == AT_FDCWD) { if (!getcwd(top, sizeof top)) top[0] = 0; }
    else of_fd(dir, top);
    snprintf(path, PATH_MAX, "%s/%s", top, name);
    return path;
}

static int inside(const char *path) {
    return length && !strncmp(path, under, length) && (path[length] == '/' || !path[length]);
}

/* Count a call; return the error that it is to fail with, or 0. */
static int hit(const char *path) {
    if (!inside(path)) return 0;
    if (__atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST) != target) return 0;
    if (!failure) { kill(getpid(), SIGKILL); pause(); }
    return failure;
}

static void note(const char *op, const char *path, const char *other, long at, const struct iovec *piece,
                 int pieces, size_t size) {
    if (log_fd < 0 || !inside(path)) return;
    char head[3 * PATH_MAX];
    int n = snprintf(head, sizeof head, "%s\t%s\t%s\t%ld\t%zu\n", op, path, other, at, size);
    pthread_mutex_lock(&lock);
    syscall(SYS_write, log_fd, head, n);
    for (int i = 0; i < pieces && size; i++) {
        size_t part = piece[i].iov_len < size ? piece[i].iov_len : size;
        syscall(SYS_write, log_fd, piece[i].iov_base, part);
        size -= part;
    }
    pthread_mutex_unlock(&lock);
}

#define REAL(name) ({ static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name); real; })
#define FAIL(path) do { int e_ = hit(path); if (e_) { errno = e_; return -1; } } while (0)

static int opened(int dir, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    const char *at = full(dir, name, path);
    struct stat there;
    int fresh = (flags & O_CREAT) && syscall(SYS_newfstatat, AT_FDCWD, at, &there, 0) < 0;
    int changes = (flags & O_ACCMODE) != O_RDONLY && (fresh || (flags & O_TRUNC));
    changes |= fresh;
    if (changes) FAIL(at);
    int fd = syscall(SYS_openat, dir, name, flags, mode);
    if (fd >= 0 && changes) note(fresh ? "create" : "cut", at, "", 0, NULL, 0, 0);
    return fd;
}
#define MODE mode_t mode = 0; if (flags & (O_CREAT | O_TMPFILE)) { va_list ap; va_start(ap, flags); mode = va_arg(ap, int); va_end(ap); }
int open(const char *p, int flags, ...) { MODE return opened(AT_FDCWD, p, flags, mode); }
int open64(const char *p, int flags, ...) { MODE return opened(AT_FDCWD, p, flags, mode); }
int openat(int d, const char *p, int flags, ...) { MODE return opened(d, p, flags, mode); }
int openat64(int d, const char *p, int flags, ...) { MODE return opened(d, p, flags, mode); }
int creat(const char *p, mode_t mode) { return opened(AT_FDCWD, p, O_WRONLY | O_CREAT | O_TRUNC, mode); }

static ssize_t written(int fd, const struct iovec *piece, int pieces, off_t at) {
    char path[PATH_MAX];
    if (!length || !inside(of_fd(fd, path)))
        return at < 0 ? syscall(SYS_writev, fd, piece, pieces) : syscall(SYS_pwritev, fd, piece, pieces, at, 0);
    FAIL(path);
    off_t place = at;
    if (at < 0) {
        struct stat there;
        int append = fcntl(fd, F_GETFL) & O_APPEND;
        place = append && !fstat(fd, &there) ? there.st_size : lseek(fd, 0, SEEK_CUR);
    }
    ssize_t n = at < 0 ? syscall(SYS_writev, fd, piece, pieces) : syscall(SYS_pwritev, fd, piece, pieces, at, 0);
    if (n > 0) note("write", path, "", place, piece, pieces, n);
    return n;
}
#define ONE struct iovec one = {(void *)data, size}
ssize_t write(int fd, const void *data, size_t size) { ONE; return written(fd, &one, 1, -1); }
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) { ONE; return written(fd, &one, 1, at); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) { ONE; return written(fd, &one, 1, at); }
ssize_t writev(int fd, const struct iovec *piece, int n) { return written(fd, piece, n, -1); }

static int cut(int fd, off_t size, int fill) {
    char path[PATH_MAX];
    FAIL(of_fd(fd, path));
    int done = fill ? syscall(SYS_fallocate, fd, 0, 0, size) : syscall(SYS_ftruncate, fd, size);
    if (!done) note(fill ? "grow" : "truncate", path, "", size, NULL, 0, 0);
    return done;
}
int ftruncate(int fd, off_t size) { return cut(fd, size, 0); }
int ftruncate64(int fd, off_t size) { return cut(fd, size, 0); }
int fallocate(int fd, int mode, off_t at, off_t size) { return cut(fd, at + size, mode == 0); }
int posix_fallocate(int fd, off_t at, off_t size) { return cut(fd, at + size, 1) ? errno : 0; }
int posix_fallocate64(int fd, off_t at, off_t size) { return cut(fd, at + size, 1) ? errno : 0; }
int truncate(const char *name, off_t size) {
    char path[PATH_MAX];
    const char *at = full(AT_FDCWD, name, path);
    FAIL(at);
    int done = syscall(SYS_truncate, name, size);
    if (!done) note("truncate", at, "", size, NULL, 0, 0);
    return done;
}
int truncate64(const char *name, off_t size) { return truncate(name, size); }

static int synced(int fd, int data) {
    char path[PATH_MAX];
    FAIL(of_fd(fd, path));
    int done = syscall(data ? SYS_fdatasync : SYS_fsync, fd);
    if (!done) note("sync", path, "", 0, NULL, 0, 0);
    return done;
}
int fsync(int fd) { return synced(fd, 0); }
int fdatasync(int fd) { return synced(fd, 1); }

static int named(const char *op, int d, const char *a, int e, const char *b, long number, int flags) {
    char from[PATH_MAX], to[PATH_MAX];
    const char *x = full(d, a, from), *y = full(e, b, to);
    FAIL(inside(x) ? x : y);
    int done = op[0] == 'r' ? syscall(number, d, a, e, b, flags)
             : op[0] == 'l' ? syscall(number, d, a, e, b, flags) : syscall(number, a, e, b);
    if (!done) note(op, inside(y) ? y : x, x, 0, NULL, 0, 0);
    return done;
}
int rename(const char *a, const char *b) { return named("rename", AT_FDCWD, a, AT_FDCWD, b, SYS_renameat2, 0); }
int renameat(int d, const char *a, int e, const char *b) { return named("rename", d, a, e, b, SYS_renameat2, 0); }
int renameat2(int d, const char *a, int e, const char *b, unsigned f) { return named("rename", d, a, e, b, SYS_renameat2, f); }
int link(const char *a, const char *b) { return named("link", AT_FDCWD, a, AT_FDCWD, b, SYS_linkat, 0); }
int linkat(int d, const char *a, int e, const char *b, int f) { return named("link", d, a, e, b, SYS_linkat, f); }
int symlink(const char *a, const char *b) { return named("symlink", AT_FDCWD, a, AT_FDCWD, b, SYS_symlinkat, 0); }
int symlinkat(const char *a, int e, const char *b) { return named("symlink", AT_FDCWD, a, e, b, SYS_symlinkat, 0); }

static int simple(const char *op, int d, const char *name, long number, int third) {
    char path[PATH_MAX];
    const char *at = full(d, name, path);
    FAIL(at);
    int done = syscall(number, d, name, third);
    if (!done) note(op, at, "", 0, NULL, 0, 0);
    return done;
}
int unlink(const char *p) { return simple("unlink", AT_FDCWD, p, SYS_unlinkat, 0); }
int unlinkat(int d, const char *p, int f) { return simple(f ? "rmdir" : "unlink", d, p, SYS_unlinkat, f); }
int rmdir(const char *p) { return simple("rmdir", AT_FDCWD, p, SYS_unlinkat, AT_REMOVEDIR); }
int mkdir(const char *p, mode_t m) { return simple("mkdir", AT_FDCWD, p, SYS_mkdirat, m); }
int mkdirat(int d, const char *p, mode_t m) { return simple("mkdir", d, p, SYS_mkdirat, m); }
int chmod(const char *p, mode_t m) { return simple("chmod", AT_FDCWD, p, SYS_fchmodat, m); }

/* Python copies files with these: told to use write() instead. */
ssize_t sendfile(int a, int b, off_t *c, size_t d) { if (length) { errno = ENOTSOCK; return -1; } return syscall(SYS_sendfile, a, b, c, d); }
ssize_t sendfile64(int a, int b, off_t *c, size_t d) { return sendfile(a, b, c, d); }
ssize_t copy_file_range(int a, off_t *b, int c, off_t *d, size_t e, unsigned f) {
    if (length) { errno = EXDEV; return -1; }
    return syscall(SYS_copy_file_range, a, b, c, d, e, f);
}

int clock_gettime(clockid_t which, struct timespec *value) {
    if (now && which == CLOCK_REALTIME) { value->tv_sec = now, value->tv_nsec = 0; return 0; }
    return REAL(clock_gettime)(which, value);
}
time_t time(time_t *value) {
    struct timespec spec;
    clock_gettime(CLOCK_REALTIME, &spec);
    if (value) *value = spec.tv_sec;
    return spec.tv_sec;
}
int gettimeofday(struct timeval *value, void *zone) {
    struct timespec spec;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &spec);
    value->tv_sec = spec.tv_sec, value->tv_usec = spec.tv_nsec / 1000;
    return 0;
}
