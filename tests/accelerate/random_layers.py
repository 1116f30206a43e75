# SPDX-License-Identifier: Apache-2.0
"""The pieces that random networks are made of: each appends its layers and statements to a Builder."""

from __future__ import annotations

from collections.abc import Callable

from tests.accelerate.random_builder import Builder, Value

PIECES: dict[str, tuple[float, Callable[[Builder], object]]] = {}
HEADS: list[Callable[[Builder], object]] = []
WIDTHS = [1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 16]


def piece(weight: float) -> Callable:
    """Registers a piece that a net is made of; ``weight`` says how often."""

    def register(made: Callable) -> Callable:
        PIECES[made.__name__] = (weight, made)
        return made

    return register


def conv(b: Builder, x: Value | None = None, c: int = 0, stride: int = 0, keep: bool = False) -> Value:
    """Any kind of convolution; ``keep`` keeps height and width."""
    rng = b.rng
    x = x or b.pick()
    c = c or rng.choice(WIDTHS)
    kind = rng.choice(["1x1", "1x1", "kxk", "kxk", "depthwise", "depthwise", "grouped", "same_pad", "other"])
    kernel = (1, 1) if kind == "1x1" else rng.choice([(3, 3), (3, 3), (5, 5), (2, 2), (1, 3), (5, 1), (3, 2), (7, 7)])
    dilation = rng.choice([1, 1, 1, 2, (1, 2)])
    stride = stride or (1 if keep else rng.choice([1, 1, 1, 2, (2, 1), 3]))
    groups = 1
    if kind == "depthwise" and (c % x.c == 0 or not keep):
        groups, c = x.c, c if c % x.c == 0 else x.c * rng.choice([1, 1, 2])
    elif kind == "grouped":
        common = [g for g in range(2, 9) if x.c % g == 0 and c % g == 0]
        groups = rng.choice(common) if common else 1
    dy, dx = dilation if isinstance(dilation, tuple) else (dilation, dilation)
    reach = (dy * (kernel[0] - 1), dx * (kernel[1] - 1))
    name = x.name
    padding: object = (reach[0] // 2, reach[1] // 2)
    if keep and any(r % 2 for r in reach) or kind == "same_pad":
        padding = 0
        sides = [reach[1] // 2, reach[1] - reach[1] // 2, reach[0] // 2, reach[0] - reach[0] // 2]
        value = rng.choice(["", "", "", ", value=0.5"])
        name = b.let(f"F.pad({name}, {sides}{value})")
        h, w = x.h + reach[0], x.w + reach[1]
    elif not keep and b.chance(0.3):
        padding = (rng.randint(0, reach[0]), rng.randint(0, reach[1]))
        h, w = x.h + 2 * padding[0], x.w + 2 * padding[1]
    else:
        h, w = x.h + 2 * padding[0], x.w + 2 * padding[1]
    sy, sx = stride if isinstance(stride, tuple) else (stride, stride)
    h, w = (h - reach[0] - 1) // sy + 1, (w - reach[1] - 1) // sx + 1
    if h < 1 or w < 1:
        return conv(b, x, c, keep=True)
    mode = ', padding_mode="replicate"' if padding != 0 and b.chance(0.04) else ""
    bias = rng.choice(["", ", bias=False"])
    made = f"nn.Conv2d({x.c}, {c}, {kernel}, {stride}, {padding}, {dilation}, groups={groups}{bias}{mode})"
    return b.map(f"{b.layer('conv', made)}({name})", x, c, h, w)


def norm(b: Builder, x: Value | None = None) -> Value:
    x = x or b.pick()
    options = b.rng.choice(["", "", "", ", affine=False", ", eps=0.1", ", eps=1e-3"])
    if x.h * x.w >= 9 and b.chance(0.04):  # the statistics of the batch, in eval mode too
        options += ", track_running_stats=False"
    return b.map(f"{b.layer('bn', f'nn.BatchNorm2d({x.c}{options})')}({x.name})", x)


def act(b: Builder, x: Value | None = None) -> Value:
    """A module, a function, written out by hand, or in place."""
    x = x or b.pick()
    n = x.name
    modules = ["ReLU()", "ReLU6()", "Hardswish()", "Hardsigmoid()", "SiLU()", "Sigmoid()", "Hardtanh(0.0, 6.0)"]
    modules += ["ReLU()", "LeakyReLU(0.1)", "Hardtanh(-1.0, 2.0)", "GELU()", f"PReLU({x.c})", "Mish()"]
    written = [
        f"torch.relu({n})", f"F.relu6({n})", f"F.hardswish({n})", f"F.silu({n})", f"torch.sigmoid({n})",
        f"{n} * F.relu6({n} + 3) / 6", f"{n} * F.relu6({n} + 3.0) * (1 / 6)", f"F.relu6({n} + 3) / 6 * {n}",
        f"F.relu6({n} + 3) / 6", f"{n} * F.hardsigmoid({n})", f"{n} * torch.sigmoid({n})", f"{n}.clamp(0, 6)",
        f"torch.clamp({n} + 3, 0, 6) / 6", f"{n}.clamp(min=0)", f"F.hardtanh({n}, 0.0, 6.0)", f"F.elu({n})",
        f"{n} * F.relu6({n} + 3) / 3", f"{n} * F.relu6({n} + 2) / 6", f"{n} * torch.sigmoid(1.702 * {n})",
        f"{n}.clamp(0, 5)", f"torch.tanh({n})",
    ]  # fmt: skip
    in_place = [f"F.relu_({n})", f"F.hardtanh_({n}, 0.0, 6.0)", f"F.silu({n}, inplace=True)", f"{n}.sigmoid_()"]
    in_place += [f"{n}.mul_(F.relu6({n} + 3) / 6)", f"F.hardswish({n}, inplace=True)", f"{n}.clamp_(0, 6)"]
    way = b.rng.random()
    if way < 0.35:
        return b.map(f"{b.layer('act', 'nn.' + b.rng.choice(modules))}({n})", x)
    if way < 0.7 or (x.of_input and not b.chance(0.15)):
        return b.map(b.rng.choice(written), x)
    if way < 0.85:
        made = b.rng.choice(["ReLU", "ReLU6", "Hardswish", "Hardsigmoid", "SiLU"])
        return b.map(f"{b.layer('act', f'nn.{made}(inplace=True)')}({n})", x, view=True)
    return b.map(b.rng.choice(in_place), x, view=True)


@piece(3)
def conv_bn_act(b: Builder) -> Value:
    x = conv(b)
    if b.chance(0.8):
        x = norm(b, x)
    return act(b, x) if b.chance(0.8) else x


@piece(1)
def preactivation(b: Builder) -> Value:
    x = norm(b)
    return conv(b, act(b, x) if b.chance(0.7) else x)


@piece(1)
def two_norms(b: Builder) -> Value:
    x = conv(b) if b.chance(0.5) else b.pick()
    return norm(b, norm(b, x))


@piece(2)
def residual(b: Builder) -> Value:
    """conv - bn + shortcut, added in any spelling, an activation before or after."""
    x = b.pick()
    y = conv(b, x, x.c, keep=True)
    y = norm(b, y) if b.chance(0.7) else y
    y = act(b, y) if b.chance(0.2) else y
    if y.size != x.size:
        return y
    if b.chance(0.15):
        b.map(f"F.relu_({x.name})", x) if not x.of_input else None
    forms = ["{y} + {x}", "{x} + {y}", "torch.add({x}, {y})", "{y}.add_({x})", "torch.add({x}, {y}, alpha=2)"]
    forms += ["{x} - {y}", "torch.add({y}, {x}, alpha=0.5)", "{y} + {x} + {x}"]
    z = b.map(b.rng.choice(forms[:4] if b.chance(0.8) else forms).format(x=x.name, y=y.name), x)
    z = norm(b, z) if b.chance(0.15) else z
    return act(b, z) if b.chance(0.6) else z


@piece(1.5)
def arithmetic(b: Builder) -> Value:
    """add and mul of values, constants and numbers, with and without broadcasting."""
    x = b.pick()
    other = b.pick(lambda v: v.size == x.size, last=0.3)
    small = b.map(f"{x.name}.mean((2, 3), keepdim=True)", x, h=1, w=1)
    b.maps.pop()
    n, o = x.name, other.name
    sizes = b.rng.choice([(1, x.c, 1, 1), (x.c, 1, 1), (1, x.c, x.h, x.w), (1,), (x.h, x.w)])
    forms = [
        f"{n} + {n}",
        f"{n} + {o}",
        f"{n} * {o}",
        f"{n} + {small.name}",
        f"{n} * {b.buffer(*sizes)}",
        f"{n} * 0.5 + 1",
    ]
    forms += [
        f"{n} + {b.buffer(*sizes)}",
        f"1 - {n}",
        f"-{n}",
        f"{n} / 3",
        f"{n} * {n}",
        f"{n} + {o}[:1]",
        f"{n}.add(1)",
    ]
    if not x.of_input:
        forms += [f"{n}.mul_(0.5)", f"{n}.add_({o})", f"{n}.mul_({small.name})"]
    return b.map(b.rng.choice(forms), x)


@piece(1.5)
def concat(b: Builder) -> Value:
    x = b.pick()
    if b.chance(0.5):
        conv(b, x, keep=True)
    parts = [x] + [b.pick(lambda v: v.size[1:] == x.size[1:], last=0.4) for _ in range(b.rng.randint(1, 3))]
    b.rng.shuffle(parts)
    names = ", ".join(part.name for part in parts)
    way = b.rng.choice([f"torch.cat([{names}], 1)", f"torch.cat(({names}), dim=-3)", f"torch.concat([{names}], dim=1)"])
    x = b.map(way, x, c=sum(part.c for part in parts))
    x = norm(b, x) if b.chance(0.3) else x
    return conv(b, x) if x.c > 24 else x


@piece(1.5)
def branches(b: Builder) -> Value:
    """Sibling convolutions of one value, concatenated or added."""
    x = b.pick()
    c = b.rng.choice(WIDTHS)
    ends = []
    for _ in range(b.rng.randint(2, 3)):
        y = conv(b, x, c, keep=True)
        y = norm(b, y) if b.chance(0.7) else y
        ends.append(act(b, y) if b.chance(0.6) else y)
    if len({y.size for y in ends}) == 1 and b.chance(0.5):
        return b.map(" + ".join(y.name for y in ends), x, *ends[0].size)
    return b.map(f"torch.cat([{', '.join(y.name for y in ends)}], 1)", x, c=sum(y.c for y in ends))


@piece(1.5)
def shared(b: Builder) -> Value:
    """One convolution, or one batch norm, called twice."""
    x = b.pick()
    if b.chance(0.5):
        call = b.layer("conv", f"nn.Conv2d({x.c}, {x.c}, 3, padding=1)")
        y = norm(b, b.map(f"{call}({x.name})", x))
        other = b.pick(lambda v: v.size == y.size, last=0.4)
        z = b.map(f"{call}({other.name})", y)
        return norm(b, z) if b.chance(0.4) else z
    call = b.layer("bn", f"nn.BatchNorm2d({x.c})")
    y = b.map(f"{call}({conv(b, x, x.c, keep=True).name})", x)
    z = conv(b, y, x.c, keep=True)
    return b.map(f"{call}({z.name})", z) if z.c == x.c else z


@piece(1)
def second_reader(b: Builder) -> Value:
    """A convolution's output goes to its batch norm, and to somebody else too."""
    x = conv(b)
    y = norm(b, x)
    y = act(b, y) if b.chance(0.5) else y
    if b.chance(0.4):
        b.returned.append(b.rng.choice([x, y]).name)
        return y
    return b.map(f"{x.name} + {y.name}", x)


@piece(0.7)
def nothing(b: Builder) -> Value:
    x = b.pick()
    made = b.rng.choice(["Identity()", "Dropout(0.5)", "Dropout2d(0.3)", "Sequential()"])
    form = f"{b.layer('nothing', f'nn.{made}')}({x.name})"
    form = b.rng.choice(
        [form, form, f"F.dropout({x.name}, 0.2, self.training)", f"{x.name}.contiguous()", f"{x.name}.clone()"]
    )
    return b.map(form, x, view=True)


@piece(0.6)
def unknown(b: Builder) -> Value:
    """Operators that no rewrite knows."""
    x = b.pick()
    layers = [f"nn.GroupNorm(1, {x.c})", f"nn.InstanceNorm2d({x.c})", f"nn.ConvTranspose2d({x.c}, {x.c}, 3, padding=1)"]
    forms = [f"{b.layer('layer', b.rng.choice(layers))}({x.name})", f"torch.softmax({x.name}, 1)", f"{x.name}.flip(3)"]
    weight = b.layer("conv", f"nn.Conv2d({x.c}, {x.c}, 1)")
    forms.append(f"F.conv2d({x.name}, torch.tanh({weight}.weight), {weight}.bias)")
    return b.map(b.rng.choice(forms), x)


PIECES["conv"] = (2, conv)
PIECES["norm"] = (1, norm)
PIECES["act"] = (1.5, act)
