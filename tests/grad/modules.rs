//! Small modules in text with random weights.

pub(crate) const VOCABULARY: usize = 24;
pub(crate) const WIDTH: usize = 32;

struct Text {
    weights: String,
    ops: String,
    seed: u64,
}

impl Text {
    fn new(seed: u64) -> Self {
        Self {
            weights: String::new(),
            ops: String::new(),
            seed,
        }
    }

    fn weight(&mut self, name: &str, dims: &str, scale: f64) {
        self.seed += 1;
        let seed = self.seed;
        self.weights += &format!(
            "  weight @{name} : f32[{dims}] = synthetic(seed={seed}, power=1.0, scale={:?}, outliers=0.0, rank=0)\n",
            0.6 * scale
        );
    }

    fn op(&mut self, line: &str) {
        self.ops += &format!("    {line}\n");
    }

    /// `%result = linear %x` with its weight.
    fn linear(
        &mut self,
        result: &str,
        x: &str,
        (out, inp): (usize, usize),
        name: &str,
        rest: &str,
    ) {
        self.weight(&format!("{name}.weight"), &format!("{out},{inp}"), 0.3);
        self.op(&format!(
            "%{result} = linear %{x} [{out},{inp}] {{ dense(@{name}.weight) }} {rest} name(\"{name}\")"
        ));
    }

    fn end(self, inputs: &str, outputs: &str) -> String {
        let Self { weights, ops, .. } = self;
        format!(
            "hlir 1\nmodule \"test\" {{\n{weights}  graph @main({inputs}) -> ({outputs}) {{\n{ops}  }}\n}}\n"
        )
    }
}

const LABELS: &str = "%labels : i64[2,5], %weights : f32[2,5]";

/// Root-mean-square norms, grouped heads, rotation, a window, a soft cap, a gate, tied ends.
pub(crate) fn llama() -> String {
    let mut t = Text::new(1);
    t.weight("embed", &format!("{VOCABULARY},{WIDTH}"), 0.5);
    t.op(&format!(
        "%e = embedding %input_ids [{VOCABULARY},{WIDTH}] {{ dense(@embed) }} name(\"embed\")"
    ));
    t.op("%p = positions %input_ids");
    let mut x = "e".to_string();
    for layer in 0..2 {
        let n = |name: &str| format!("l{layer}.{name}");
        let w = |name: &str| format!("layers.{layer}.{name}");
        t.weight(&w("norm"), "32", 0.5);
        t.op(&format!(
            "%{} = rms_norm %{x}, @{} {{eps=0.01, unit_offset={}}} name(\"{}\")",
            n("n"),
            w("norm"),
            layer == 0,
            w("norm")
        ));
        t.linear(&n("q"), &n("n"), (32, 32), &w("q"), "");
        t.linear(&n("k"), &n("n"), (16, 32), &w("k"), "");
        t.linear(&n("v"), &n("n"), (16, 32), &w("v"), "");
        t.weight(&w("q_norm"), "8", 0.8);
        t.op(&format!(
            "%{} = rms_norm %{}, @{} {{eps=0.01, slice=8}}",
            n("qn"),
            n("q"),
            w("q_norm")
        ));
        let interleaved = layer == 1;
        t.op(&format!("%{} = rope %{}, %p {{heads=4, head_dim=8, rotary_dim=6, theta=100.0, interleaved={interleaved}}}", n("qr"), n("qn")));
        t.op(&format!("%{} = rope %{}, %p {{heads=2, head_dim=8, rotary_dim=6, theta=100.0, interleaved={interleaved}}}", n("kr"), n("k")));
        let rest = match layer {
            0 => "causal=true, window=3",
            _ => "causal=true, softcap=1.5",
        };
        t.op(&format!("%{} = attention %{}, %{}, %{} {{heads=4, kv_heads=2, head_dim=8, scale=0.4, {rest}, cache={layer}}}", n("a"), n("qr"), n("kr"), n("v")));
        t.linear(&n("o"), &n("a"), (32, 32), &w("o"), "");
        t.op(&format!("%{} = add %{x}, %{}", n("r"), n("o")));
        t.linear(&n("g"), &n("r"), (48, 32), &w("gate"), "");
        t.linear(&n("u"), &n("r"), (48, 32), &w("up"), "");
        t.op(&format!(
            "%{} = activate %{} {{function=\"silu\"}}",
            n("s"),
            n("g")
        ));
        t.op(&format!("%{} = mul %{}, %{}", n("m"), n("s"), n("u")));
        t.linear(&n("d"), &n("m"), (32, 48), &w("down"), "");
        t.op(&format!("%{} = add %{}, %{}", n("out"), n("r"), n("d")));
        x = n("out");
    }
    t.op(&format!("%logits = linear %{x} [{VOCABULARY},{WIDTH}] {{ dense(@embed) }} scale(0.5) role(head) name(\"head\")"));
    t.op("%loss = loss.cross_entropy %logits, %labels, %weights");
    t.end(&format!("%input_ids : i64[2,5], {LABELS}"), "%loss")
}

/// Layer norms, biases, learned positions, a key mask, GELU, transposed weights.
pub(crate) fn gpt() -> String {
    let mut t = Text::new(50);
    t.weight("embed", &format!("{VOCABULARY},{WIDTH}"), 0.5);
    t.weight("positions", "5,32", 0.5);
    t.weight("n1", "32", 0.9);
    t.weight("n1b", "32", 0.3);
    t.weight("qkv.weight", "32,96", 0.3);
    t.weight("qkv.bias", "96", 0.3);
    t.weight("up.bias", "40", 0.3);
    t.weight("shift", "32", 0.3);
    t.weight("stretch", "32", 0.9);
    t.op(&format!(
        "%e = embedding %input_ids [{VOCABULARY},{WIDTH}] {{ dense(@embed) }}"
    ));
    t.op("%x0 = add %e, @positions");
    t.op("%n = layer_norm %x0, @n1, @n1b {eps=0.001}");
    t.op(
        "%qkv = linear %n [96,32] { dense(@qkv.weight, transposed) } bias(@qkv.bias) name(\"qkv\")",
    );
    t.op("%q = slice %qkv {start=0, width=32}");
    t.op("%k = slice %qkv {start=32, width=32}");
    t.op("%v = slice %qkv {start=64, width=32}");
    t.op("%a = attention %q, %k, %v, %mask {heads=4, kv_heads=4, head_dim=8, scale=0.35, causal=false}");
    t.op("%r = add %x0, %a");
    t.op("%r1 = add %r, @shift");
    t.op("%r2 = mul %r1, @stretch");
    t.linear("u", "r2", (40, 32), "up", "bias(@up.bias)");
    t.op("%g = activate %u {function=\"gelu\"}");
    t.linear("d", "g", (32, 40), "down", "");
    t.op("%out = add %r2, %d");
    t.linear("logits", "out", (VOCABULARY, WIDTH), "head", "role(head)");
    t.op("%loss = loss.cross_entropy %logits, %labels, %weights");
    t.end(
        &format!("%input_ids : i64[2,5], %mask : i64[2,5], {LABELS}"),
        "%loss",
    )
}

/// [`mixture`] with experts as stacks, `[4, out, in]` in one tensor.
pub(crate) fn stacks() -> String {
    experts(true, true)
}

/// A mixture of experts: four, of which a token goes to two; one that nobody may choose stays idle.
pub(crate) fn mixture(normalize: bool) -> String {
    experts(normalize, false)
}

fn experts(normalize: bool, stacked: bool) -> String {
    let mut t = Text::new(90);
    t.weight("norm", "32", 0.9);
    t.op("%n = rms_norm %x, @norm {eps=0.01}");
    t.linear("route", "n", (4, 32), "router", "role(router)");
    let mut experts = Vec::new();
    let parts = [("gate", "24,32"), ("up", "24,32"), ("down", "32,24")];
    if stacked {
        for (part, dims) in parts {
            t.weight(&format!("experts.{part}"), &format!("4,{dims}"), 0.3);
        }
    }
    for e in 0..4 {
        let name = |part: &str| format!("experts.{e}.{part}");
        if !stacked {
            for (part, dims) in parts {
                t.weight(&format!("{}.weight", name(part)), dims, 0.3);
            }
        }
        let weight = |part: &str| match stacked {
            true => format!("experts.{part}, index={e}"),
            false => format!("{}.weight", name(part)),
        };
        let linear = |out: &str, x: &str, dims: &str, part: &str| {
            format!(
                "%{out} = linear %{x} [{dims}] {{ dense(@{}) }} role(expert) name(\"{}\")\n",
                weight(part),
                name(part)
            )
        };
        experts.push(format!(
            "region \"expert{e}\"(%t{e}) -> (%d{e}) {{\n{}{}%s{e} = activate %g{e} {{function=\"gelu_tanh\"}}\n%m{e} = mul %s{e}, %u{e}\n{}}}",
            linear(&format!("g{e}"), &format!("t{e}"), "24,32", "gate"),
            linear(&format!("u{e}"), &format!("t{e}"), "24,32", "up"),
            linear(&format!("d{e}"), &format!("m{e}"), "32,24", "down"),
        ));
    }
    t.op(&format!(
        "%y = moe %n, %route {{top_k=2, normalize={normalize}}} experts [{}]",
        experts.join(", ")
    ));
    t.op("%out = add %x, %y");
    t.op("%loss = loss.mean_square %out, %target, %weights");
    t.end(
        "%x : f32[2,5,32], %target : f32[2,5,32], %weights : f32[2,5]",
        "%loss",
    )
}

/// What transformers have no use for together: scales, caps, the first token, operands of two shapes.
pub(crate) fn natives() -> String {
    let mut t = Text::new(200);
    t.op("%a = slice %wide {start=3, width=32}");
    t.op("%b = scale %a {factor=0.7}");
    t.op("%c = softcap %b {cap=1.2}");
    t.op("%turned = hadamard %c {block=8, seed=5}");
    t.op("%c2 = hadamard %turned {block=16, seed=6, inverse=true}");
    t.op("%d = activate %c2 {function=\"tanh\"}");
    t.op("%e = add %d, %x");
    t.op("%f = activate %e {function=\"relu\"}");
    t.op("%g = mul %f, %x");
    t.op("%h = mul %g, %g");
    t.op("%i = scale %h {factor=-1.5}");
    t.op("%k = first_token %i");
    t.op("%loss = loss.mean_square %k, %first_target, %first_weights");
    t.op("%other = loss.mean_square %i, %target, %weights");
    t.end(
        "%x : f32[2,5,32], %wide : f32[2,5,64], %first_target : f32[2,32], %first_weights : f32[2], %target : f32[2,5,32], %weights : f32[2,5]",
        "%loss, %other",
    )
}

/// Every loss on one head.
pub(crate) fn losses() -> String {
    let mut t = Text::new(300);
    t.weight("head.bias", &VOCABULARY.to_string(), 0.3);
    t.linear(
        "logits",
        "x",
        (VOCABULARY, WIDTH),
        "head",
        "bias(@head.bias)",
    );
    t.op("%ce = loss.cross_entropy %logits, %labels, %weights");
    t.op("%kl = loss.kl %logits, %teacher, %weights");
    t.op("%top_kl = loss.top_kl %logits, %top_ids, %top, %weights");
    t.end(
        "%x : f32[2,5,32], %labels : i64[2,5], %weights : f32[2,5], %teacher : f32[2,5,24], %top_ids : i64[2,5,3], %top : f32[2,5,3]",
        "%ce, %kl, %top_kl",
    )
}

/// An ONNX op between two linears.
pub(crate) fn without_rule() -> String {
    let mut t = Text::new(400);
    t.linear("a", "x", (32, 32), "a", "");
    t.op("%e = onnx.Erf(%a) name(\"odd\")");
    t.linear("b", "e", (32, 32), "b", "");
    t.op("%loss = loss.mean_square %b, %target, %weights");
    t.end(
        "%x : f32[2,5,32], %target : f32[2,5,32], %weights : f32[2,5]",
        "%loss",
    )
}

/// A linear whose result nobody reads.
pub(crate) fn unreached() -> String {
    let mut t = Text::new(500);
    t.linear("a", "x", (32, 32), "a", "");
    t.linear("b", "x", (32, 32), "idle", "");
    t.op("%loss = loss.mean_square %a, %target, %weights");
    t.end(
        "%x : f32[2,5,32], %target : f32[2,5,32], %weights : f32[2,5]",
        "%loss, %b",
    )
}
