"""Would the tests notice a wrong loop? As ``tests/mutation.py`` for the formulas, for the loops beside them.

    python -m tests.loops.mutation

Each loop of ``minivit/loops`` is changed in one place at a time, run by Python (see ``plain.py``), and compared with
its formula, value and cotangents. Left as they are: the functions around the loops, which choose and make room.
"""

import json
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

from minivit import Tensor, no_grad, op
from minivit.optim.adamw import adamw
from tests.compare import UNIT, errors, exact, numbers
from tests.loops import plain
from tests.loops.test_convolution import convolution
from tests.loops.test_loops import attention, perceptron
from tests.mutation import Mutant, mutants

NAMES = {
    "compiler": ["exp"], "activation": ["gelu"], "normalization": ["layer_norm", "add_layer_norm"],
    "optim": ["adamw"], "attention": ["attend"], "linear": ["linear"], "mlp": ["mlp"], "batch_norm": ["batch_norm"],
    "convolution": ["convolve"],
}  # fmt: skip
AROUND = {"_fits", "_room", "_to_be_read"}
SHARED = {"add_bias", "exp", "gelu_of"}  # loops, or parts of them, that other files use
EQUIVALENT = {  # Φ(0) is a half from either side, the larger of two is so in either order, and narrow vectors serve too
    ("gelu_of", ">=", ">"),
    ("_forward", "larger(row[j], largest)", "larger(largest, row[j])"),
    ("exp", "pass", "in_widest_vectors()"),
    ("_convolve", "pass", "in_widest_vectors()"),
    *(
        (f, f"{before}{x}[{i}]", f"{before}_three({x}[{i}], 0)")
        for f, x in (("_add_row", "k"), ("_add_products", "products"))
        for i in range(4)
        for before in "( "
    ),
    *(("_add_row", f"_product(seen, for_{o})", f"_product(for_{o}, seen)") for o in "pqrs"),
}
CAST = re.compile(r"np\.(?:float32|int32)\(([^()]*)\)")


def compare(loops: SimpleNamespace) -> None:
    """Raise AssertionError where a loop does not compute its formula."""
    x = np.linspace(-87, 0, 300).astype(np.float32)
    np.testing.assert_allclose([loops.exp(number) for number in x], np.exp(x.astype(float)), rtol=2 * UNIT["float32"])
    assert loops.exp(np.float32(-87.01)) == 0 < loops.exp(np.float32(-86.99))
    assert np.isnan(loops.exp(np.float32("nan")))
    rows, other, weight, bias = numbers(0, 3, 5), numbers(1, 3, 5), 1 + numbers(2, 5), numbers(3, 5)
    cases: list[tuple[Callable, tuple]] = [
        (loops.gelu, (np.append(numbers(0, 20, scale=2), np.float32(0)),)),
        (loops.layer_norm, (rows, weight, bias, 0.1)),
        (loops.add_layer_norm, (rows, other, weight, bias, 0.1)),
        (loops.batch_norm, (numbers(0, 2, 5, 3), weight, bias, 0.1)),
        (loops.linear, (rows, numbers(4, 2, 5), numbers(5, 2))),
        (loops.mlp, perceptron(0, 5)),
        (attention(loops.attend), tuple(numbers(i, 2, 3, 3, 4) for i in range(3))),
        (attention(loops.attend), tuple(numbers(i, 1, 1, n, 2, scale=2) for i, n in enumerate((3, 4, 4)))),
    ]
    loops.mlp.__globals__.update(FEWEST=2, HIDDEN=1)  # three blocks of five rows
    for stand_in, args in cases:
        assert max(errors(stand_in, np, args)) < 1e-5
    for line in (16, 6):  # two images of 15 numbers in a piece and one in the next; or each in two parts
        loops.convolve.__globals__.update(LINE=line)
        args = numbers(0, 3, 15, 4, 2), numbers(1, 21, 5, 3, 3)
        assert max(errors(convolution(loops.convolve, groups=3), np, args)) < 1e-5
    with no_grad():  # no slope then
        for stand_in, args in [(loops.gelu, (rows,)), (loops.mlp, perceptron(0, 5))]:
            np.testing.assert_allclose(op(stand_in)(*map(Tensor, args)).data, stand_in.formula(*args)[0], rtol=1e-5)
    far, large = (1000 + rows, weight, bias), tuple(40 * numbers(i, 1, 1, 2, 4) for i in range(3))
    for stand_in, args in [(loops.layer_norm, far), (loops.batch_norm, far), (attention(loops.attend), large)]:
        np.testing.assert_allclose(stand_in(*args)[0], stand_in.formula(*map(exact, args))[0], atol=1e-3, rtol=1e-4)
    arrays = [numbers(i, 4) for i in range(3)] + [numbers(3, 4) ** 2]
    right = [array.astype(float) for array in arrays]
    figures = np.array([0.9, 0.8, 0.2, 0.7, 0.3, 0.1, 0.5], np.float32)
    adamw(figures.astype(float), None, *right)
    loops.adamw(figures, None, *arrays)
    np.testing.assert_allclose(arrays, right, rtol=1e-5, atol=1e-6)


def made() -> Iterator[tuple[str, Mutant]]:
    """Every changed loop, and the file that it is of. A cast left out is no change: numbers are float32 already."""
    for file, chosen in NAMES.items():
        for mutant in mutants(plain.FOLDER / f"{file}.py", chosen):
            function, before, after = mutant.key
            is_loop = function in SHARED or (function.startswith("_") and function not in AROUND)
            same = any(
                function == f and new in after and after.replace(new, old) == before for f, new, old in EQUIVALENT
            )
            if is_loop and not same and CAST.sub(r"\1", before) != CAST.sub(r"\1", after):
                yield file, mutant


def survives(file: str, mutant: Mutant) -> bool:
    with warnings.catch_warnings(), np.errstate(all="ignore"), plain.new_memory_is_nan():
        warnings.simplefilter("ignore")
        try:
            compare(plain.loops({file: mutant.code}))
        except Exception:
            return False
    return True


def main() -> int:
    with np.errstate(all="ignore"):  # the ends of e^x
        compare(plain.loops())
    every = list(made())
    survivors = [mutant for file, mutant in tqdm(every, unit="mutant", disable=None) if survives(file, mutant)]
    for function, before, after in (mutant.key for mutant in survivors):
        print(f"\nsurvived, in {function}:\n- {before}\n+ {after}")
    print(json.dumps({"mutants": len(every), "killed": len(every) - len(survivors), "survived": len(survivors)}))
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
