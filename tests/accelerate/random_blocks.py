# SPDX-License-Identifier: Apache-2.0
"""Pieces of random networks: squeeze-and-excitation, channel order, pools, views, heads."""

from __future__ import annotations

from tests.accelerate.random_builder import Builder, Value
from tests.accelerate.random_layers import HEADS, act, conv, norm, piece


@piece(1.5)
def squeeze_excite(b: Builder) -> Value:
    rng = b.rng
    x = b.pick()
    mid = rng.choice([1, 2, 3, 5])
    gate = rng.choice(
        ["torch.sigmoid({})", "F.hardsigmoid({})", "F.relu6({} + 3) / 6", "torch.tanh({})", "{}.sigmoid()"]
    )
    mid_act = rng.choice(["F.relu({})", "F.silu({})", "F.hardswish({})", "F.relu({}, inplace=True)", "{}"])
    if b.chance(0.4):
        pooled = rng.choice(["{}.mean((2, 3))", "F.adaptive_avg_pool2d({}, 1).flatten(1)", "{}.mean([-1, -2])"])
        first, second = (b.layer("fc", f"nn.Linear({i}, {o})") for i, o in ((x.c, mid), (mid, x.c)))
        end = rng.choice([f"{{}}.view(-1, {x.c}, 1, 1)", "{}[:, :, None, None]", "{}.unsqueeze(2).unsqueeze(3)"])
    else:
        pooled = rng.choice(
            ["{}.mean((2, 3), keepdim=True)", "F.adaptive_avg_pool2d({}, 1)", "{}.mean(2, True).mean(3, True)"]
        )
        bias = rng.choice(["", "", ", bias=False"])
        first, second = (b.layer("fc", f"nn.Conv2d({i}, {o}, 1{bias})") for i, o in ((x.c, mid), (mid, x.c)))
        end = "{}"
    s = b.let(pooled.format(x.name))
    s = b.let(mid_act.format(f"{first}({s})"))
    s = b.let(end.format(f"({gate.format(f'{second}({s})')})"))
    forms = [f"{x.name} * {s}", f"{s} * {x.name}", f"{x.name}.mul({s})", f"{s}.expand_as({x.name}) * {x.name}"]
    if not x.of_input:
        forms += [f"{x.name}.mul_({s})"]
    y = b.map(rng.choice(forms), x)
    if b.chance(0.1):
        b.returned.append(s)
    return y


@piece(1.5)
def shuffle(b: Builder) -> Value:
    """A channel shuffle in three spellings, and some permutations of channels that look like one."""
    x = b.pick(lambda v: v.c % 2 == 0 or v.c % 3 == 0)
    if x is None:
        x = conv(b, c=6, keep=True)
    if x.c == 1:
        return x
    groups = b.rng.choice([g for g in range(2, x.c + 1) if x.c % g == 0])
    n, per, h, w = x.name, x.c // groups, x.h, x.w
    shape = b.rng.choice([f"{n}.shape[0]", "-1", f"{n}.size(0)"])
    end = b.rng.choice(
        [f"reshape({shape}, {x.c}, {h}, {w})", "flatten(1, 2)", f"contiguous().view({n}.shape[0], -1, {h}, {w})"]
    )
    forms = [
        f"{n}.view({shape}, {groups}, {per}, {h}, {w}).transpose(1, 2).{end}",
        f"{n}.reshape({shape}, {groups}, {per}, {h}, {w}).permute(0, 2, 1, 3, 4).{end}",
        f"nn.ChannelShuffle({groups})({n})", f"F.channel_shuffle({n}, {groups})",
        f"{n}.reshape({shape}, {groups}, {per}, {h}, {w}).transpose(1, 2).transpose(1, 2).{end}",
        f"{n}[:, {sorted(range(x.c), key=lambda i: i % per)}]",
    ]  # fmt: skip
    if x.c % 2 == 0:
        forms.append(f"torch.stack({n}.chunk(2, 1), 2).flatten(1, 2)")
        forms.append(f"torch.stack([{n}[:, {x.c // 2}:], {n}[:, :{x.c // 2}]], dim=2).flatten(1, 2)")
    form = b.rng.choice(forms)
    if ".view(" in form.split(".transpose")[0]:
        n2 = b.let(f"{n}.contiguous()")
        form = form.replace(f"{n}.view", f"{n2}.view")
    return b.map(form, x)


@piece(1.5)
def split(b: Builder) -> Value:
    """chunk, split and slices, negative and open ends, a piece that nobody reads; perhaps joined again."""
    x = b.pick(lambda v: v.c >= 2)
    if x is None:
        return conv(b, c=5)
    n, c = x.name, x.c
    cut = b.rng.randint(1, c - 1)
    ways = [
        (f"{n}.chunk(2, 1)", (-(-c // 2), c - -(-c // 2))),
        (f"torch.split({n}, [{cut}, {c - cut}], 1)", (cut, c - cut)),
        (f"{n}.split(({cut}, {c - cut}), dim=-3)", (cut, c - cut)),
        (f"{n}[:, :{cut}], {n}[:, {cut}:]", (cut, c - cut)),
        (f"{n}[:, -{cut}:], {n}[:, :-{cut}]", (cut, c - cut)),
        (f"{n}.narrow(1, 0, {cut}), {n}.narrow(1, {cut}, {c - cut})", (cut, c - cut)),
        (f"{n}[:, ::2], {n}[:, 1::2]", (-(-c // 2), c // 2)),
        (f"torch.tensor_split({n}, 2, dim=1)", (-(-c // 2), c // 2)),
    ]
    made, widths = b.rng.choice(ways)
    first, second = b.name(), b.name()
    b.body.append(f"{first}, {second} = {made}")
    pieces = [Value(name, width, x.h, x.w, x.of_input) for name, width in zip((first, second), widths, strict=True)]
    b.maps += pieces
    if b.chance(0.3):
        return pieces[1]
    left = conv(b, pieces[0], keep=True) if b.chance(0.7) else pieces[0]
    left = act(b, norm(b, left)) if b.chance(0.5) else left
    right = conv(b, pieces[1], keep=True) if b.chance(0.3) else pieces[1]
    if b.chance(0.2):
        b.returned.append(pieces[0].name)
    return b.map(f"torch.cat([{left.name}, {right.name}], 1)", x, c=left.c + right.c)


@piece(1)
def in_place_on_a_view(b: Builder) -> Value:
    """A slice is changed in place: so is what it was taken from."""
    x = b.pick(lambda v: v.c >= 2 and not v.of_input)
    if x is None:
        return conv(b)
    cut = b.rng.randint(1, x.c - 1)
    view = b.map(b.rng.choice([f"{x.name}[:, :{cut}]", f"{x.name}.narrow(1, 0, {cut})"]), x, c=cut, view=True)
    forms = [
        f"{view.name}.relu_()",
        f"{view.name}.mul_(0.5)",
        f"{view.name}.add_(1)",
        f"{view.name}.copy_({view.name} * 2)",
    ]
    b.body.append(b.rng.choice(forms))
    if b.chance(0.5):
        b.returned.append(view.name)
    y = b.map(f"{x.name} * 1.5", x)
    return conv(b, y) if b.chance(0.5) else y


@piece(1)
def escape(b: Builder) -> Value | None:
    """A view of a value is returned; the value is used on, perhaps changed in place."""
    x = b.pick()
    forms = [
        f"{x.name}[:, -1:]",
        f"{x.name}[:, :, 1:]",
        f"{x.name}.flatten(2)",
        f"{x.name}[:, 0]",
        f"{x.name}.transpose(2, 3)",
    ]
    b.returned.append(b.let(b.rng.choice(forms)))
    if not x.of_input and b.chance(0.4):
        return b.map(f"{x.name}.relu_()", x)
    return act(b, x)


@piece(1.5)
def pool(b: Builder) -> Value:
    rng = b.rng
    x = b.pick()
    if min(x.h, x.w) < 3:
        return conv(b, x, keep=True)
    k, s, p, ceil = rng.choice([2, 3, (3, 2)]), rng.choice([1, 2]), rng.choice([0, 1]), rng.choice([True, False])
    ky, kx = k if isinstance(k, tuple) else (k, k)

    def out(size: int, kernel: int) -> int:
        count = -(-(size + 2 * p - kernel) // s) + 1 if ceil else (size + 2 * p - kernel) // s + 1
        return count - 1 if ceil and (count - 1) * s >= size + p else count

    way = rng.random()
    if way < 0.35:
        made = f"nn.MaxPool2d({k}, {s}, {p}, ceil_mode={ceil})"
    elif way < 0.7:
        made = f"nn.AvgPool2d({k}, {s}, {p}, ceil_mode={ceil}, count_include_pad={rng.choice([True, False])})"
    else:
        h, w = rng.choice([(1, 1), (2, 2), (3, 1), (x.h, x.w), (min(x.h, 5), 2)])
        kind = rng.choice(["Avg", "Avg", "Max"])
        return b.map(f"{b.layer('pool', f'nn.Adaptive{kind}Pool2d(({h}, {w}))')}({x.name})", x, h=h, w=w)
    return b.map(f"{b.layer('pool', made)}({x.name})", x, h=out(x.h, ky), w=out(x.w, kx))


@piece(1)
def inverted_residual(b: Builder) -> Value:
    x = b.pick()
    y = act(b, norm(b, conv(b, x, x.c * 2, keep=True)))
    dw = b.layer("conv", f"nn.Conv2d({y.c}, {y.c}, 3, 1, 1, groups={y.c}, bias=False)")
    y = act(b, norm(b, b.map(f"{dw}({y.name})", y)))
    y = squeeze_excite(b) if b.chance(0.4) and b.maps[-1] is y else y
    y = norm(b, b.map(f"{b.layer('conv', f'nn.Conv2d({y.c}, {x.c}, 1, bias=False)')}({y.name})", y, c=x.c))
    return b.map(f"{x.name} + {y.name}", x) if y.size == x.size else y


def classifier(b: Builder) -> None:
    """Global pool, flatten, dropout, linear, with batch norm and activation between."""
    x = b.pick()
    forms = [
        "F.adaptive_avg_pool2d({}, 1).flatten(1)",
        "{}.mean((2, 3))",
        "{}.mean([2, 3])",
        "F.avg_pool2d({}, %s).flatten(1)",
    ]
    forms += ["torch.flatten(F.adaptive_avg_pool2d({}, (1, 1)), 1)", "{}.flatten(2).mean(2)", "{}.amax((2, 3))"]
    form = b.rng.choice(forms)
    v = b.let((form % f"({x.h}, {x.w})" if "%s" in form else form).format(x.name))
    width = x.c
    if b.chance(0.3):
        v = b.let(f"{b.layer('bn', f'nn.BatchNorm1d({width})')}({v})")
    if b.chance(0.5):
        v = b.let(f"{b.layer('drop', 'nn.Dropout(0.2)')}({v})")
    for _ in range(b.rng.randint(1, 2)):
        out = b.rng.randint(1, 9)
        v = b.let(f"{b.layer('fc', f'nn.Linear({width}, {out})')}({v})")
        width = out
        if b.chance(0.4):
            v = b.let(f"{b.layer('bn', f'nn.BatchNorm1d({width})')}({v})")
        if b.chance(0.4):
            v = b.let(b.rng.choice(["F.relu({})", "F.hardswish({})", "{}.relu_()", "F.softmax({}, 1)"]).format(v))
    b.returned.append(v)


def flat_classifier(b: Builder) -> None:
    """All of the map into one linear layer."""
    x = b.pick()
    if x.c * x.h * x.w > 4000:
        return
    v = b.let(b.rng.choice(["{}.flatten(1)", "{0}.reshape({0}.shape[0], -1)", "torch.flatten({}, 1)"]).format(x.name))
    fc = b.layer("fc", f"nn.Linear({x.c * x.h * x.w}, {b.rng.randint(1, 7)})")
    b.returned.append(b.let(f"{fc}({v})"))


HEADS += [classifier, classifier, flat_classifier]
