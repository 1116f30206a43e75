# SPDX-License-Identifier: Apache-2.0
"""The program's words are written in two places: words.py against the structs of program.h, name by name."""

import dataclasses
import re
from enum import IntEnum
from pathlib import Path

import pytest

from fastcnn.accelerate.plan import words

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "csrc/cpu/plan"
HEADER = re.sub(r"//[^\n]*", "", (PLAN / "program.h").read_text(encoding="utf-8"))
CHECKS = "\n".join(path.read_text(encoding="utf-8") for path in sorted(PLAN.glob("program*.cpp")))
OF_STEPS = {"PoolWindow": "Pool"}  # beside the enum Pool, Python's class needs a name of its own


def fields_of(struct: str) -> list[str]:
    """The data members of a struct in order; ``prologue_`` behind an accessor is ``prologue``."""
    struct = struct_of(struct)
    body = re.search(rf"struct {struct} \{{(.*?)\n\}};", HEADER, re.DOTALL)
    assert body, f"program.h has no struct {struct}"
    found = []
    for declaration in re.findall(r"^\s*\w+ ([\w, ]+);", body[1], re.MULTILINE):
        found += [name.strip().rstrip("_") for name in declaration.split(",")]
    return found


def struct_of(name: str) -> str:
    """``name``, or the struct that it is another name of."""
    alias = re.search(rf"using {name} = (\w+);", HEADER)
    return alias[1] if alias else name


def enumerators(name: str, text: str = HEADER) -> list[str]:
    """Without the leading k, in order; all count from 0."""
    body = re.search(rf"enum class {name}\b[^{{]*\{{(.*?)\}}", text, re.DOTALL)
    assert body and "=" not in body[1]
    return [each.strip().removeprefix("k") for each in body[1].split(",") if each.strip()]


def names(cls: type) -> list[str]:
    return [field.name for field in dataclasses.fields(cls)]


def step_name(cls: type) -> str:
    return OF_STEPS.get(cls.__name__, cls.__name__)


@pytest.mark.parametrize("cls", [words.Header, words.Value])
def test_header_and_values(cls: type) -> None:
    assert names(cls) == fields_of(cls.__name__)


@pytest.mark.parametrize("cls", words.STEPS, ids=step_name)
def test_the_arguments_of_a_step(cls: type) -> None:
    assert names(cls) == fields_of(f"{step_name(cls)}Args")


def test_the_steps_come_in_the_order_of_the_operations() -> None:
    operations = enumerators("Op")
    assert operations.pop() == "Count"
    assert [step_name(cls) for cls in words.STEPS] == operations


def test_so_do_the_kernels() -> None:
    table = re.search(r"kernels\{kLanes, \{([^}]*)\}\}", (PLAN / "kernels.kernel.cpp").read_text(encoding="utf-8"))
    found = [each.strip() for each in table[1].split(",")]  # kPointwise, or pointwise_bf16() where a processor may have none
    found = [each.removeprefix("k") if each[0] == "k" else each[:-2].title().replace("_", "") for each in found]
    assert found == [step_name(cls) for cls in words.STEPS]


def test_every_field_that_names_a_value_is_known_as_one() -> None:
    """What READS and WRITES leave out has no lifetime: the arena would hand out its memory twice."""
    for cls in words.STEPS:
        body = re.search(rf"  void check\(const {struct_of(step_name(cls) + 'Args')}& a[^)]*\) const \{{(.*?)\n  \}}", CHECKS, re.DOTALL)
        assert body, cls
        read = set(re.findall(r"(?:read|any|written|residual|vector)\(a\.(\w+)", body[1]))
        assert read == {name for name in names(cls) if name in (*words.READS, *words.WRITES)}, cls
        assert set(re.findall(r"written\(a\.(\w+)", body[1])) == read & set(words.WRITES), cls


@pytest.mark.parametrize("enum", [words.Place, words.Pool, words.Binary], ids=lambda enum: enum.__name__)
def test_enumerations(enum: type[IntEnum]) -> None:
    wanted = [re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper() for name in enumerators(enum.__name__)]
    assert {each.name: each.value for each in enum} == {name: i for i, name in enumerate(wanted)}


def test_activations() -> None:
    text = (ROOT / "csrc/common/epilogue.h").read_text(encoding="utf-8")
    assert list(words.ACTIVATIONS) == [name.lower() for name in enumerators("Activation", text)]


@pytest.mark.parametrize(
    ("constant", "value"),
    [("kMagic", words.MAGIC), ("kVersion", words.VERSION), ("kNone", words.NONE), ("kAlignment", words.ALIGNMENT)],
)
def test_constants(constant: str, value: int) -> None:
    written = re.search(rf"constexpr int64_t {constant} = (-?\w+);", HEADER)
    assert int(written[1], 0) == value
