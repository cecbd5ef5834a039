"""Would the tests notice a wrong derivative? This program writes wrong ones, and counts those that they notice.

    python -m tests.mutation                 every op
    python -m tests.mutation softmax gelu    some of them

Each function of ``minivit/ops`` is changed in one place at a time, on its way forward and on its way back: an operator,
a sign, a constant or a variable; a term, a factor or a statement dropped; axes or results exchanged (``changes`` is the
list). The changed module is run in memory, and its ops have to keep the rules of ``tests/rules.py``, gradient checks
first, on cases drawn from ``tests/strategies.py``. A changed op, a *mutant*, that breaks a rule is killed. One that
survives is printed and makes the program fail, unless ``EQUIVALENT`` says why it computes the same function.

Left as they are: the checks of arguments that end in ``raise``, default values, and constants outside of functions.
"""

import argparse
import ast
import json
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import CodeType

from tqdm import tqdm

from minivit import backend, ops
from tests.rules import check
from tests.strategies import CASES, Case, on_drawn

EXAMPLES = 40  # cases for each op

EQUIVALENT = {  # reason: (function, line before, line after)
    "what stands in for a formula computes the same": [
        ("scaled_dot_product_attention", "attend_pullback = implementation(attend, q)(q, k, v, bias, scale, out)",
         "attend_pullback = attend(q, k, v, bias, scale, out)"),
        ("self_attention",
         "attend_pullback = implementation(attend, q)(q, k, v, None, scale, out.transpose(0, 2, 1, 3))",
         "attend_pullback = attend(q, k, v, None, scale, out.transpose(0, 2, 1, 3))"),
    ],
    "k, v, a and ds have four axes: axis 2 is axis -2": [
        ("attend", "a = q @ k.swapaxes(-1, -2)", "a = q @ k.swapaxes(-1, 2)"),
        ("attend", "ds = do @ v.swapaxes(-1, -2)", "ds = do @ v.swapaxes(-1, 2)"),
        ("attend", "xp.matmul(ds.swapaxes(-1, -2), q, out=dk)", "xp.matmul(ds.swapaxes(-1, 2), q, out=dk)"),
        ("attend", "xp.matmul(a.swapaxes(-1, -2), do, out=dv)", "xp.matmul(a.swapaxes(-1, 2), do, out=dv)"),
    ],
    "k and v are of one shape": [
        ("scaled_dot_product_attention", "dq, dk, dv = (xp.empty(x.shape, x.dtype) for x in (q, k, v))",
         "dq, dk, dv = (xp.empty(x.shape, x.dtype) for x in (q, v, k))"),
    ],
    "the cases fit, so a check may let more pass": [
        ("scaled_dot_product_attention", "scores = q.shape[:3] + k.shape[2:3]", "scores = k.shape[2:3]"),
    ],
    "the walk back sums as well": [
        ("attend", "dbias = None if bias_shape is None else unbroadcast(ds, bias_shape)",
         "dbias = None if bias_shape is None else ds"),
    ],
    "y has two axes here: axis 1 is axis -1": [
        *((name, "return (y.reshape(shape[:-1] + y.shape[-1:]), pullback)",
           "return (y.reshape(shape[:-1] + y.shape[1:]), pullback)") for name in ("linear", "mlp")),
    ],
    "it is applied twice": [
        ("_sum_diagonals", "return shifted.reshape(length, -1, *x.shape[2:]).sum(axis=0)",
         "return -shifted.reshape(length, -1, *x.shape[2:]).sum(axis=0)"),
        ("_read_as", "return x.view(dtype)", "return -x.view(dtype)"),
    ],
    "twice as many are divided by twice their number": [
        ("_pool", "return (taps, (*shape[:2], *size))", "return (2 * taps, (*shape[:2], *size))"),
    ],
    "axes to sum over have no order": [
        ("conv2d", "dbias = dy.sum((2, 3)) if bias_wanted else None",
         "dbias = dy.sum((3, 2)) if bias_wanted else None"),
    ],
    "all arrays are of one module": [("concatenate", "xp = array_module(arrays[0])", "xp = array_module(arrays[-1])")],
    "it is multiplied by 0": [
        ("power", "below = exponent - 1 if exponent else 0", "below = exponent - 1 if exponent else 1"),
    ],
    "Φ(0) is a half, from either side": [("_gelu_exact", "tail -= x > 0", "tail -= x >= 0")],
    "a range serves as well as a tuple": [("_axes", "return tuple(range(ndim))", "return range(ndim)")],
    "half precision, which has a test of its own, is normalised in float32": [
        ("batch_norm", "x = x.reshape(*shape[:2], -1).astype(real, copy=False)", "x = x.reshape(*shape[:2], -1)"),
        ("batch_norm", "dy = dy.reshape(centred.shape).astype(real, copy=False)", "dy = dy.reshape(centred.shape)"),
        ("batch_norm", "return (y.reshape(shape).astype(dtype, copy=False), pullback)",
         "return (y.reshape(shape), pullback)"),
    ],
    "half precision, which has a test of its own, is turned in float32": [
        ("rotate", "y = _read_as(pairs, x.astype(real, copy=False)) * turn", "y = _read_as(pairs, x) * turn"),
        ("rotate", "dy = _read_as(pairs, dy.astype(real, copy=False))", "dy = _read_as(pairs, dy)"),
        ("rotate", "return (_read_as(real, y).astype(x.dtype, copy=False), pullback)",
         "return (_read_as(real, y), pullback)"),
    ],
    "as exact, only slower or larger in memory": [
        ("conv2d", "dbias = dy.sum((2, 3)) if bias_wanted else None", "dbias = dy.sum((2, 3))"),
        ("conv2d", "implementation(convolve, x)(x, kernel, stride, padding, y)",
         "convolve(x, kernel, stride, padding, y)"),
        ("_cotangents", "products = implementation(convolve, dy)(dy, turned, (1, 1), inner, part, other)",
         "products = convolve(dy, turned, (1, 1), inner, part, other)"),
        ("convolve", "products = None if other is None else array_module(x).zeros(kernel.shape, x.dtype)",
         "products = array_module(x).zeros(kernel.shape, x.dtype)"),
        ("_seen", "if seen is None or seen.shape[3] != images:", "if seen is None or seen.shape != images:"),
        ("avg_pool2d", "pixels = xp.zeros(y_shape[2:], x.dtype)", "pixels = xp.zeros(y_shape, x.dtype)"),
        ("avg_pool2d", "pixels = xp.zeros(y_shape[2:], x.dtype)", "pixels = xp.zeros(y_shape[1:], x.dtype)"),
        *(("batch_norm", line.format("copy=False"), line.format(copy).replace(", )", ")"))
          for line in ("x = x.reshape(*shape[:2], -1).astype(real, {})",
                       "dy = dy.reshape(centred.shape).astype(real, {})",
                       "return (y.reshape(shape).astype(dtype, {}), pullback)") for copy in ("", "copy=True")),
        ("_sum_by_channel", "return implementation(sum_of_rows, rows)(rows).reshape(x.shape[1], -1).sum(axis=1)",
         "return sum_of_rows(rows).reshape(x.shape[1], -1).sum(axis=1)"),
        *(("attend", "ds = xp.multiply(ds, scale, out=None if dbias is ds else ds)", line)
          for line in ("ds = xp.multiply(ds, scale)", "ds = xp.multiply(ds, scale, out=None)")),
        ("attend", "bias_shape = None if bias is None or not wanted(3) else bias.shape",
         "bias_shape = None if bias is None or not wanted(2) else bias.shape"),
        ("_read_as", "if x.strides[-1] != x.dtype.itemsize:", "if x.strides != x.dtype.itemsize:"),
        *(("rotate", line.format("real, copy=False"), line.format(arguments))
          for line in ("y = _read_as(pairs, x.astype({})) * turn", "dy = _read_as(pairs, dy.astype({}))")
          for arguments in ("real", "real, copy=True")),
        *(("rotate", "return (_read_as(real, y).astype(x.dtype, copy=False), pullback)",
           f"return (_read_as(real, y).astype({arguments}), pullback)")
          for arguments in ("x.dtype", "x.dtype, copy=True")),
        ("_gelu_exact", "coefficients = _TAIL_FLOAT64 if x.dtype.itemsize == 8 else TAIL_FLOAT32",
         "coefficients = _TAIL_FLOAT64"),
        ("_gelu_exact", "tail = xp.multiply(t, coefficients[-1], out=y)", "tail = xp.multiply(t, coefficients[-1])"),
        ("gelu", "slope = xp.empty(x.size, x.dtype) if recording() else None", "slope = xp.empty(x.size, x.dtype)"),
    ],
}  # fmt: skip

CHOICES = {"_is_view", "_pieces", "_rows_at_once"}  # functions that choose how to go about it: other ways serve as well

OPERATORS = {
    ast.Add: [ast.Sub], ast.Sub: [ast.Add], ast.Mult: [ast.Div], ast.Div: [ast.Mult], ast.MatMult: [ast.Mult],
    ast.Pow: [ast.Mult], ast.Mod: [ast.Mult], ast.FloorDiv: [ast.Mult],
    ast.BitAnd: [ast.BitOr], ast.LShift: [ast.RShift], ast.Gt: [ast.GtE, ast.Lt], ast.GtE: [ast.Gt], ast.LtE: [ast.Lt],
    ast.Eq: [ast.NotEq], ast.In: [ast.NotIn], ast.Is: [ast.IsNot], ast.IsNot: [ast.Is],
}  # fmt: skip
METHODS = {"sum": "mean", "mean": "sum", "max": "min", "maximum": "minimum", "subtract": "add", "zeros": "ones"}
SYMMETRIC = {"swapaxes", "max", "min", "maximum", "multiply"}  # their arguments may be exchanged


@dataclass(frozen=True)
class Mutant:
    key: tuple[str, str, str]  # function, line before, line after
    ops: frozenset[str]  # the ops that use the function
    code: CodeType  # of the whole module

    function = property(lambda self: self.key[0])


def changes(node: ast.AST, operands: set[str]) -> Iterator[ast.AST]:
    """What ``node`` may be replaced by; ``operands`` are the variables that the function calculates with."""
    match node:
        case ast.BinOp(left, op, right):
            yield from (ast.BinOp(left, other(), right) for other in OPERATORS[type(op)])
            yield left
            yield right
            if not isinstance(op, (ast.Add, ast.Mult)):
                yield ast.BinOp(right, op, left)
            for name in sorted(operands):
                if isinstance(left, ast.Name):
                    yield ast.BinOp(ast.Name(name, ast.Load()), op, right)
                if isinstance(right, ast.Name):
                    yield ast.BinOp(left, op, ast.Name(name, ast.Load()))
        case ast.UnaryOp(ast.USub(), operand):
            yield operand
            if isinstance(operand, ast.Constant):
                yield ast.Constant(1 - operand.value)
        case ast.Constant(bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(int(value) | float(value)):
            yield ast.Constant(value + 1)
            yield ast.Constant(value - 1 if isinstance(value, int) else -value)
        case ast.Compare(left, [op], [right]):
            yield from (ast.Compare(left, [other()], [right]) for other in OPERATORS.get(type(op), ()))
        case ast.IfExp(_, body, orelse):
            yield body
            yield orelse
        case ast.Subscript(value, _, ast.Load()) | ast.Attribute(value, "T"):
            yield value
        case ast.Tuple(elements, ast.Load()):
            yield from (ast.Tuple(swapped, ast.Load()) for swapped in _neighbours_exchanged(elements))
        case ast.Call(function, arguments, keywords):
            yield from _changed_calls(function, arguments, keywords)
        case ast.AugAssign(target, op, value):
            yield from (ast.AugAssign(target, other(), value) for other in OPERATORS[type(op)])
            if isinstance(value, ast.Name):
                yield from (ast.AugAssign(target, op, ast.Name(name, ast.Load())) for name in sorted(operands))
            yield ast.Pass()
        case ast.Assign([ast.Subscript()], _) | ast.Expr():
            yield ast.Pass()
        case ast.Assign([ast.Name(name)], value) if name in _names(value):
            yield ast.Pass()
        case ast.If(test, body, orelse):
            yield ast.If(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Return(value):
            yield from map(ast.Return, _changed_results(value))
        case ast.Lambda(arguments, body):
            yield from (ast.Lambda(arguments, result) for result in _changed_results(body))


def _changed_calls(function: ast.expr, arguments: list, keywords: list) -> Iterator[ast.expr]:
    name = ast.unparse(function).rpartition(".")[2]
    if name in {"array_module", "isinstance", "recording", "wanted"}:
        return
    if name in METHODS and isinstance(function, ast.Attribute):
        yield ast.Call(ast.Attribute(function.value, METHODS[name], ast.Load()), arguments, keywords)
    is_method = isinstance(function, ast.Attribute) and ast.unparse(function.value) not in {"xp", "math"}
    if is_method:
        yield function.value
    elif arguments:
        yield arguments[0]
    for i in range(len(keywords)):
        yield ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])
    if name not in SYMMETRIC:
        yield from (ast.Call(function, swapped, keywords) for swapped in _neighbours_exchanged(arguments))


def _changed_results(value: ast.expr) -> Iterator[ast.expr]:
    """Each result negated, doubled or withheld; a pullback among them is left to its own changes."""
    results = value.elts if isinstance(value, ast.Tuple) else [value]
    for i, result in enumerate(results):
        if isinstance(result, ast.Lambda) or ast.unparse(result).endswith("pullback"):
            continue
        doubled = ast.BinOp(ast.Constant(2), ast.Mult(), result)
        for new in (ast.UnaryOp(ast.USub(), result), doubled, ast.Constant(None)):
            changed = [*results[:i], new, *results[i + 1 :]]
            yield ast.Tuple(changed, ast.Load()) if isinstance(value, ast.Tuple) else new


def _neighbours_exchanged(items: list) -> Iterator[list]:
    for i in range(len(items) - 1):
        yield [*items[:i], items[i + 1], items[i], *items[i + 2 :]]


def _names(node: ast.AST) -> set[str]:
    return {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}


def places(node: ast.AST, line: ast.AST) -> Iterator[tuple[Callable, ast.AST, ast.AST]]:
    """All parts of ``node`` that may change: a function that puts another in its place, the part, and its line."""
    fields = ["body"] if isinstance(node, (ast.FunctionDef, ast.Lambda)) else node._fields
    for field in fields:
        value = getattr(node, field)
        for key, part in enumerate(value) if isinstance(value, list) else [(field, value)]:
            if not isinstance(part, ast.AST) or _only_checks(part):
                continue
            part_line = part if isinstance(part, (ast.stmt, ast.Lambda)) else line
            put = partial(value.__setitem__, key) if isinstance(value, list) else partial(setattr, node, field)
            yield put, part, part_line
            if not (isinstance(part, ast.UnaryOp) and isinstance(part.operand, ast.Constant)):  # −1 is one constant
                yield from places(part, part_line)


def _only_checks(part: ast.AST) -> bool:
    """A docstring, or what raises an error."""
    if isinstance(part, ast.If):
        return all(map(_only_checks, part.body)) and not part.orelse
    return isinstance(part, ast.Raise) or (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))


def mutants(path: Path, chosen: list[str]) -> Iterator[Mutant]:
    """Every changed version of one module of ops, as far as the ``chosen`` ops use what is changed."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for function in tree.body:
        users = frozenset(name for name in chosen if function in _reached(tree, name))
        if not isinstance(function, ast.FunctionDef) or not users:
            continue
        sides = [x for part in ast.walk(function) if isinstance(part, ast.BinOp) for x in (part.left, part.right)]
        operands = {x.id for x in sides if isinstance(x, ast.Name)}
        seen = set()
        for put, part, line in list(places(function, function)):
            before = ast.unparse(line).splitlines()[0]
            for new in changes(part, operands):
                put(new)
                after = ast.unparse(new if part is line else line).splitlines()[0]
                if after != before and (line, after) not in seen:
                    seen.add((line, after))
                    code = compile(ast.fix_missing_locations(tree), str(path), "exec")
                    yield Mutant((function.name, before, after), users, code)
            put(part)


def _reached(tree: ast.Module, name: str) -> set[ast.stmt]:
    """The definition of ``name``, those of the names that it mentions, and so on."""
    defined = {part.name: part for part in tree.body if isinstance(part, ast.FunctionDef)}
    assigned = (part for part in tree.body if isinstance(part, ast.Assign))
    defined |= {name: part for part in assigned for name in _names(part.targets[0])}
    reached, waiting = set(), {name}
    while waiting:
        part = defined.get(waiting.pop())
        if part and part not in reached:
            reached.add(part)
            waiting |= _names(part)
    return reached


def fate(mutant: Mutant, cases: dict[str, list[Case]]) -> str:
    """``survived``, ``killed`` by a broken rule, or ``crashed`` with another error."""
    module = {"__name__": "mutant"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # mutants divide by zero, and so on
        try:
            exec(mutant.code, module)
            if "cache_blocks" in module:  # of three numbers, so that small arrays have several
                module["cache_blocks"] = lambda array, *_: backend.cache_blocks(array, 3 * array.dtype.itemsize)
            for name in sorted(mutant.ops):
                for case in cases[name]:
                    check(module[name], case)
        except AssertionError:
            return "killed"
        except Exception:
            return "crashed"
    return "survived"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Make wrong ops, and count those that the tests notice.")
    parser.add_argument("ops", nargs="*", metavar="op", help="ops to change (default: all)")
    chosen = parser.parse_args(arguments).ops or ops.__all__
    if unknown := set(chosen) - set(ops.__all__):
        parser.error(f"no such op: {', '.join(sorted(unknown))}")
    cases = {name: on_drawn(CASES[name], EXAMPLES, lambda case: case) for name in chosen}
    worst = max(check(getattr(ops, name), case) for name in chosen for case in cases[name])

    paths = sorted(path for path in Path(ops.__file__).parent.glob("*.py") if path.name != "__init__.py")
    made = [mutant for path in paths for mutant in mutants(path, chosen)]
    excused = {key for keys in EQUIVALENT.values() for key in keys if key[0] in {mutant.function for mutant in made}}
    fates: dict[str, Counter] = {}
    survivors = []
    for mutant in tqdm(made, unit="mutant", disable=not sys.stderr.isatty()):
        end = fate(mutant, cases)
        if end == "survived" and (mutant.key in excused or mutant.function in CHOICES):
            excused.discard(mutant.key)
            end = "equivalent"
        elif end == "survived":
            survivors.append(mutant)
        fates.setdefault(mutant.function, Counter())[end] += 1

    ends = ["killed", "crashed", "equivalent", "survived"]
    print(f"{'function':30}{'mutants':>10}" + "".join(f"{end:>12}" for end in ends))
    for function, counts in fates.items():
        print(f"{function:30}{counts.total():10}" + "".join(f"{counts[end]:12}" for end in ends))
    for function, before, after in [mutant.key for mutant in survivors] + sorted(excused):
        complaint = (
            "is listed as equivalent, but does not survive" if (function, before, after) in excused else "survived"
        )
        print(f"\n{complaint}, in {function}:\n- {before}\n+ {after}")
    total = sum(fates.values(), Counter())
    figures = {
        "mutants": len(made), "killed": total["killed"] + total["crashed"], "equivalent": total["equivalent"],
        "survived": total["survived"], "crashed": total["crashed"], "worst_gradcheck_error": worst, "ops": len(cases),
        "examples": sum(map(len, cases.values())),
    }  # fmt: skip
    print(json.dumps(figures))
    return 1 if survivors or excused else 0


if __name__ == "__main__":
    sys.exit(main())
