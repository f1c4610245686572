"""Every kernel compiles for a GPU, at the shapes of the paper's model, without there being one: Triton brings ptxas.

What the interpreter cannot show: that the assembly is accepted, what is kept in registers, and how memory is read.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton", reason="pip install -e '.[kernels]'")
pytestmark = pytest.mark.slow

HEADS, WIDTH, ROWS, FRAMES = 16, 1280, 516, 16
HEAD_WIDTH = WIDTH // HEADS
HOPPER = 90

KERNELS = {
    "cache": ("kernels.cache_attention", "read_cache_kernel"),
    "cache, picked rows": ("kernels.cache_attention", "read_cache_kernel"),
    "norm": ("kernels.add_norm", "add_norm_kernel"),
    "temporal, forward": ("kernels.temporal_attention", "forward_kernel"),
    "temporal, backward": ("kernels.temporal_attention", "backward_kernel"),
}
"""Module and kernel of what ``calls`` launches."""


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """Of no device: only its type matters."""
    return torch.empty(shape, dtype=dtype, device="meta")


def calls() -> dict[str, Callable[[], object]]:
    """What launches each of ``KERNELS``, as the model calls it."""
    from magi.model.kernels import add_norm, cache_attention, temporal_attention
    from magi.model.teacher_forcing import SlotPattern

    stored, length_1 = empty(ROWS, FRAMES, 2, HEADS, HEAD_WIDTH), empty(1, dtype=torch.long)
    qkv, picked, rows = *(empty(count, 3, HEADS, HEAD_WIDTH) for count in (ROWS, 16)), empty(16, dtype=torch.long)
    pattern = SlotPattern(FRAMES - 1, FRAMES, 1)
    projected, sizes = empty(1, pattern.slots, ROWS // 2, 3 * WIDTH), (pattern.causal, pattern.frames, pattern.views)
    mixed = empty(1, pattern.slots, ROWS // 2, WIDTH)
    norm = (empty(WIDTH), empty(WIDTH))
    return {
        "cache": lambda: cache_attention.read_cache(qkv, stored, length_1),
        "cache, picked rows": lambda: cache_attention.read_cache(picked, stored, length_1, rows),
        "norm": lambda: add_norm.add_norm(empty(ROWS, WIDTH), empty(ROWS, WIDTH), norm, 1e-6),
        "temporal, forward": lambda: temporal_attention.run_forward(None, projected, HEADS, *sizes),
        "temporal, backward": lambda: temporal_attention.run_backward(mixed, None, projected, HEADS, *sizes),
    }


class Launch:
    """Stands where a kernel does: compiles what a launch with these arguments would."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *positional: Any, **named: Any) -> None:
        """Types as a launch finds them; memory begins at multiples of 16 bytes, as that of tensors does."""
        names = self.kernel.arg_names
        options = {name: value for name, value in named.items() if name not in names}
        given = dict(zip(names, positional, strict=False)) | {name: named[name] for name in named if name in names}
        signature, constants, attributes = {}, {}, {}
        for place, parameter in enumerate(self.kernel.params):
            value = given[parameter.name]
            if parameter.is_constexpr:
                signature[parameter.name], constants[(place,)] = "constexpr", value
                continue
            signature[parameter.name] = triton.runtime.jit.mangle_type(value)
            if isinstance(value, torch.Tensor) or (isinstance(value, int) and value % 16 == 0):
                attributes[(place,)] = [["tt.divisibility", 16]]
        source = triton.compiler.ASTSource(self.kernel, signature, constants, attributes)
        target = triton.backends.compiler.GPUTarget("cuda", HOPPER, 32)
        self.compiled = triton.compile(source, target=target, options=options)


def compiled(folder: Path) -> dict[str, dict[str, Any]]:
    """Of each kernel: assembly, registers and stack (spilled registers) of a thread."""
    found = {}
    for name, call in calls().items():
        module_name, kernel_name = KERNELS[name]
        module = sys.modules[f"magi.model.{module_name}"]
        kernel = getattr(module, kernel_name)
        launch = Launch(kernel)
        setattr(module, kernel_name, launch)
        call()
        setattr(module, kernel_name, kernel)
        binary = folder / "kernel.cubin"
        binary.write_bytes(launch.compiled.asm["cubin"])
        words = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", str(binary)]
        usage = subprocess.run(words, capture_output=True, text=True, check=True).stdout
        registers, stack = (int(number) for number in re.findall(r"(?:REG|STACK):(\d+)", usage))
        found[name] = {
            "assembly": launch.compiled.asm["ptx"],
            "registers": registers,
            "stack": stack,
        }
    return found


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """``compiled``, in a process of its own, because a process with Triton's interpreter cannot."""
    try:
        assert triton.knobs.nvidia.ptxas.path and triton.knobs.nvidia.cuobjdump.path
    except (AttributeError, RuntimeError) as error:
        pytest.skip(f"this build of Triton has no assembler for NVIDIA's GPUs: {error}")
    folder = tmp_path_factory.mktemp("compiled")
    words = (
        "import json; from pathlib import Path; from tests.model.kernels.test_compile import compiled;"
        f"print(json.dumps(compiled(Path({str(folder)!r}))))"
    )
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder), "TRITON_INTERPRET": "0"}
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def loads(assembly: str, kind: str = "") -> set[str]:
    """What the loads of a kind take at a time: vectors and their types."""
    return set(re.findall(rf"ld\.global{kind}\.((?:v\d\.)?[a-z]\d+)", assembly))


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_compiles_and_no_register_is_spilled(kernels: dict[str, dict[str, Any]], name: str) -> None:
    assert kernels[name]["registers"] <= 255
    assert kernels[name]["stack"] == 0


@pytest.mark.parametrize("name", ["cache", "cache, picked rows"])
def test_the_cache_is_read_sixteen_bytes_at_a_time(kernels: dict[str, dict[str, Any]], name: str) -> None:
    """Past the small cache; and 16 programs of a warp fit where registers are 2^16."""
    assert loads(kernels[name]["assembly"], r"\.cg") == {"v4.b32"}
    assert kernels[name]["registers"] <= 128


def test_rows_to_norm_are_read_sixteen_bytes_at_a_time(kernels: dict[str, dict[str, Any]]) -> None:
    assert loads(kernels["norm"]["assembly"]) == {"v4.b32"}
