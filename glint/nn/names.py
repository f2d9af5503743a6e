"""What nets are called, where torch need not be loaded to know."""

TIMM = "timm:"  # before the name of a model of timm
ONNX = "onnx"  # the net of an ONNX file, whose layers are an option

NAMES = (
    "iresnet",
    "iresnet18",
    "iresnet34",
    "iresnet50",
    "iresnet100",
    "iresnet200",
    "mobilefacenet",
    "mbf",
    "mbf_large",
    "vit_t",
    "vit_s",
    "vit_b",
    "vit_l",
    "vargfacenet",
    "mixfacenet_xs",
    "mixfacenet_s",
    "mixfacenet_m",
    "shufflemixfacenet_xs",
    "shufflemixfacenet_s",
    "shufflemixfacenet_m",
)
