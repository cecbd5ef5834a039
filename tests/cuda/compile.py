"""Every kernel compiled as a GPU would have it, without a GPU: ``python -m tests.cuda.compile``.

NVRTC, the compiler that CuPy uses too, needs no driver; it is in the packages ``nvidia-cuda-nvrtc`` and
``cuda-pathfinder``. For each kernel, each use below and each architecture the registers of a thread and its shared
memory are printed. A kernel that does not compile, or spills registers to memory, ends the program with status 1.
"""

import ctypes
import re
import sys
from collections.abc import Iterator

from minivit.cuda.launch import FOLDER, options, source

ARCHITECTURES = ("sm_80", "sm_90")  # Ampere: A100; Hopper: H100, H200
F, H = "float", "bf16"
USES: dict[str, list[dict]] = {  # of each file: constants as the stand-ins choose them
    "attention": [
        dict(TOKENS=tokens, HEAD=head, WARPS=warps)
        for head in (32, 64)
        for tokens, warps in ((17, 2), (50, 4), (65, 3), (145, 4), (197, 4), (208, 4), (256, 4))
    ],
    "layer_norm": [
        dict(X=x, B=b, Z=z, Y=y, WIDTH=width)
        for x, b, z, y in ((F, F, F, F), (F, H, F, H), (H, F, F, H), (H, H, H, H))
        for width in (192, 384, 768)
    ],
    "norm": [{}],
    "optim": [{}],
    "philox": [{}],
    "reduce": [dict(X=x) for x in (F, H)],
    "elementwise": [dict(X=x, Y=y, Z=z) for x, y, z in ((F, F, F), (F, H, F), (H, F, F), (F, F, H), (H, H, H))],
    "gelu": [dict(X=x, DY=x, TANH=tanh) for x in (F, H) for tanh in (0, 1)],
    "softmax": [
        dict(X=x, Y=y, DY=x, TEAM=team, WIDTH=width)
        for x, y in ((F, F), (F, H), (H, H))
        for team, width in ((32, 197), (32, 768), (256, 6144), (1024, 24576))
    ],
    "cross_entropy": [
        dict(X=x, TARGET=target, TEAM=team, WIDTH=width)
        for x in (F, H)
        for target in ("unsigned char", "int", "long long", F, H)
        for team, width in ((32, 10), (32, 768), (256, 1000), (1024, 21843))
    ],
    "patchify": [
        dict(X=x, Y=y, CHANNELS=3, HEIGHT=224, WIDTH=224, PATCH_HEIGHT=size, PATCH_WIDTH=size, STEP=step, **normalised)
        for x, y, normalised in (
            (F, F, {}),
            (F, H, {}),
            ("unsigned char", H, dict(SCALES="1.0,0x1.8p-2,2.0", SHIFTS="-1.0,0.0,1.0")),
        )
        for size, step in ((16, 4), (14, 1))
    ],
}


def compiler() -> ctypes.CDLL:
    """The library of NVRTC. Raises ImportError or RuntimeError where it is not installed."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("nvrtc").abs_path)


def compile_kernel(library: ctypes.CDLL, file: str, constants: dict, architecture: str) -> str:
    """What ptxas says of ``kernels/<file>.cu``. Raises RuntimeError with the compiler's words where it fails."""
    program = ctypes.c_void_p()
    code = source(file).encode()
    assert not library.nvrtcCreateProgram(ctypes.byref(program), code, f"{file}.cu".encode(), 0, None, None)
    words = [*options(constants), f"-arch={architecture}", "--ptxas-options=-v"]
    status = library.nvrtcCompileProgram(program, len(words), (ctypes.c_char_p * len(words))(*map(str.encode, words)))
    size = ctypes.c_size_t()
    library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
    log = ctypes.create_string_buffer(size.value)
    library.nvrtcGetProgramLog(program, log)
    library.nvrtcDestroyProgram(ctypes.byref(program))
    if status:
        raise RuntimeError(f"{file}.cu {constants} does not compile for {architecture}:\n{log.value.decode()}")
    return log.value.decode()


def resources(log: str) -> Iterator[tuple[str, int, int, int]]:
    """For each kernel its name, registers, bytes of shared memory that it declares, and bytes spilled."""
    for part in log.split("Compiling entry function")[1:]:
        name = re.search(r"'(\w+)'", part)[1]
        registers = int(re.search(r"Used (\d+) registers", part)[1])
        shared = int((re.search(r"(\d+) bytes smem", part) or [0, 0])[1])
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", part)))
        yield name, registers, shared, spilled


def main() -> int:
    library, bad, count = compiler(), 0, 0
    if missing := {path.stem for path in FOLDER.glob("*.cu")} ^ USES.keys():
        print(f"no use is listed for {', '.join(sorted(missing))}.cu, or the file is gone")
        bad += 1
    for file, uses in USES.items():
        for constants in uses:
            for architecture in ARCHITECTURES:
                try:
                    log = compile_kernel(library, file, constants, architecture)
                except RuntimeError as error:
                    print(error)
                    bad += 1
                    continue
                for name, registers, shared, spilled in resources(log):
                    use = ", ".join(f"{key} {value}" for key, value in constants.items())
                    spills = f", {spilled} B SPILLED" if spilled else ""
                    print(f"{architecture}  {name:32} {use:36} {registers:3} registers, {shared:5} B shared{spills}")
                    bad += bool(spilled)
                    count += 1
    print(f"{count} kernels compiled, {bad} bad")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
