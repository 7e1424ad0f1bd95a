//! How far each kernel reads and writes, against how long what it is given is.

use super::steps::buffer;
use super::{Faults, linear};
use crate::plan::{Plan, Program, Step, Value, Variant, element_bytes};

/// A step with what it is checked against.
pub(super) struct Checked<'p> {
    pub(super) plan: &'p Plan,
    pub(super) program: &'p Program,
    pub(super) step: &'p Step,
    pub(super) variant: &'p Variant,
    pub(super) at: &'p str,
}

pub(super) fn step(
    plan: &Plan,
    program: &Program,
    step: &Step,
    variant: &Variant,
    at: &str,
    faults: &mut Faults,
) {
    let c = Checked {
        plan,
        program,
        step,
        variant,
        at,
    };
    match variant.kernel.as_str() {
        "fused_linear" | "linear_prefill" => linear::check(&c, faults),
        "embed" => {
            let (width, rows) = (c.int("width"), c.int("rows"));
            linear::base(&c, rows.div_ceil(16), width, faults);
            c.rows("y", c.int("ldy"), width, faults);
            c.holds("ids", u64::from(step.grid[0]), faults);
        }
        "normalize" => {
            let width = c.int("width");
            c.rows("x", c.int("ldx"), width, faults);
            c.holds("gain", width, faults);
            c.holds("beta", width, faults);
            c.rows("residual", c.int("ldy"), width, faults);
            c.outputs(width, faults);
        }
        "quantize" => {
            let width = c.int("width");
            c.rows("x", c.int("ldx"), width, faults);
            c.outputs(width, faults);
        }
        "elementwise" => {
            let width = c.int("width");
            for (name, ld) in [("a", "lda"), ("b", "ldb"), ("y", "ldy")] {
                c.rows(name, c.int(ld), width, faults);
            }
        }
        "hadamard" => {
            let width = c.int("width");
            c.rows("x", c.int("ldx"), width, faults);
            c.holds("signs", width.div_ceil(32), faults);
            c.holds("bias", width, faults);
            c.rows("residual", c.int("ldr"), width, faults);
            c.outputs(width, faults);
            let block = c.int("block");
            if !block.is_power_of_two() || block > 1024 || !width.is_multiple_of(block.max(1)) {
                faults.add(
                    at,
                    format!("blocks of {block} do not cut {width} into powers of two"),
                );
            }
            if u64::from(step.grid[1]) * 1024 < width {
                faults.add(
                    at,
                    format!(
                        "{} blocks along y do not cover {width} columns",
                        step.grid[1]
                    ),
                );
            }
        }
        "low_rank_inner" => {
            let rank = c.int("rank");
            let (x_rows, slots) = linear::prefill_rows(&c, faults);
            c.rows_of("x", x_rows, c.int("ldx"), c.int("ldx"), faults);
            c.rows_of("h", slots, rank, rank, faults);
            let [x, y, _] = step.grid.map(u64::from);
            if x * 16 < rank || y * 16 < u64::from(program.tokens) {
                let problem = format!("{x} × {y} blocks do not cover {rank} rows of all tokens");
                faults.add(at, problem);
            }
        }
        "moe_route" => {
            let (experts, top_k) = (c.int("experts"), c.int("top_k"));
            c.rows("logits", c.int("ldl"), experts, faults);
            c.rows("ids", top_k, top_k, faults);
            c.rows("weights", top_k, top_k, faults);
            if top_k > experts {
                faults.add(at, format!("{top_k} of {experts} experts can't be chosen"));
            }
        }
        "moe_sort" => {
            let tokens = u64::from(program.tokens);
            let slots = tokens.saturating_mul(c.int("top_k"));
            for name in ["ids", "slots", "starts"] {
                c.needs(name, faults);
            }
            c.holds("ids", slots, faults);
            c.holds("slots", slots, faults);
            c.holds("starts", c.int("experts").saturating_add(1), faults);
            if step.grid != [1, 1, 1] {
                faults.add(at, "is the work of one block");
            }
            if c.is_null("scalars") && c.int("tokens") > tokens {
                faults.add(
                    at,
                    format!("{} tokens are more than go through", c.int("tokens")),
                );
            }
        }
        "moe_combine" => {
            let (width, top_k) = (c.int("width"), c.int("top_k"));
            let slots = u64::from(step.grid[0]).saturating_mul(top_k);
            for name in ["x", "weights", "y"] {
                c.needs(name, faults);
            }
            c.rows_of("x", slots, c.int("ldx"), width, faults);
            c.rows("weights", top_k, top_k, faults);
            c.rows("residual", c.int("ldr"), width, faults);
            c.rows("y", c.int("ldy"), width, faults);
        }
        "sample" => {
            let tokens = u64::from(step.grid[0]);
            c.rows("logits", c.int("ldl"), c.int("rows"), faults);
            c.holds("token", tokens, faults);
            c.holds("params", tokens * 3, faults);
            c.holds("top_k", tokens, faults);
        }
        _ => attention(&c, faults),
    }
    c.tokens(faults);
}

impl Checked<'_> {
    pub(super) fn int(&self, name: &str) -> u64 {
        u64::try_from(self.step.args.int(name)).unwrap_or(0)
    }

    pub(super) fn define(&self, name: &str) -> u64 {
        u64::try_from(self.variant.define(name)).unwrap_or(0)
    }

    pub(super) fn is_null(&self, name: &str) -> bool {
        matches!(self.step.args.get(name), None | Some(Value::Null))
    }

    /// Elements behind an argument; `None` for null.
    pub(super) fn elements(&self, name: &str) -> Option<u64> {
        match self.step.args.get(name)? {
            Value::Buffer { name, offset } => {
                let found = buffer(self.plan, self.program, name)?;
                let size = element_bytes(&found.dtype)?;
                Some(found.bytes.saturating_sub(*offset) / size)
            }
            Value::Section { weight, section } => {
                let found = self.plan.weight(weight)?.section(section)?;
                Some(found.bytes / element_bytes(&found.dtype)?)
            }
            _ => None,
        }
    }

    /// Tokens that the step makes rows of.
    fn count(&self) -> u64 {
        match self.variant.kernel.as_str() {
            "linear_prefill" | "rope_append" | "attention_prefill" => {
                u64::from(self.program.tokens)
            }
            "attention_decode" => u64::from(self.step.grid[2]),
            _ => u64::from(self.step.grid[0]),
        }
    }

    /// An argument, if given, has at least so many elements.
    pub(super) fn holds(&self, name: &str, needed: u64, faults: &mut Faults) {
        if let Some(have) = self.elements(name)
            && have < needed
        {
            faults.add(
                self.at,
                format!("argument `{name}`: {needed} elements are used, and it has {have}"),
            );
        }
    }

    /// An argument, if given, has so many rows.
    pub(super) fn rows_of(
        &self,
        name: &str,
        count: u64,
        stride: u64,
        width: u64,
        faults: &mut Faults,
    ) {
        if self.is_null(name) {
            return;
        }
        if count > 1 && stride < width {
            faults.add(
                self.at,
                format!("argument `{name}`: rows of {width} at a stride of {stride} overlap"),
            );
        }
        let before = count.saturating_sub(1).saturating_mul(stride);
        self.holds(name, before.saturating_add(width), faults);
    }

    /// An argument, if given, has a row for each token.
    pub(super) fn rows(&self, name: &str, stride: u64, width: u64, faults: &mut Faults) {
        self.rows_of(name, self.count(), stride, width, faults);
    }

    /// A pointer that the variant reads or writes is given.
    pub(super) fn needs(&self, name: &str, faults: &mut Faults) {
        if self.is_null(name) {
            faults.add(
                self.at,
                format!("argument `{name}` is null, and the variant uses it"),
            );
        }
    }

    /// What `OUT` says is written.
    fn outputs(&self, width: u64, faults: &mut Faults) {
        let ldy = self.int("ldy");
        match self.define("OUT") {
            0 => {
                self.needs("y", faults);
                self.rows("y", ldy, width, faults);
            }
            1 => {
                self.needs("y16", faults);
                self.rows("y16", ldy, ldy.max(width), faults);
            }
            _ => {
                let padded = width.next_multiple_of(64);
                for (name, each) in [("yq", 1), ("ys", 32), ("ysum", 32)] {
                    self.needs(name, faults);
                    self.rows(name, padded / each, padded / each, faults);
                }
            }
        }
    }

    /// Launches with a block per token have one for each.
    fn tokens(&self, faults: &mut Faults) {
        let per_token = [
            "embed",
            "normalize",
            "quantize",
            "elementwise",
            "hadamard",
            "moe_route",
            "moe_combine",
        ];
        let one = self.variant.kernel == "elementwise" && self.define("OP") == 7;
        let kernel = self.variant.kernel.as_str();
        if per_token.contains(&kernel) && !one && self.step.grid[0] < self.program.tokens {
            let problem = format!(
                "{} blocks do not cover {} tokens",
                self.step.grid[0], self.program.tokens
            );
            faults.add(self.at, problem);
        }
    }
}

fn attention(c: &Checked<'_>, faults: &mut Faults) {
    let (heads, kv_heads, dim) = (c.int("heads"), c.int("kv_heads"), c.define("HEAD_DIM"));
    let capacity = c.int("capacity");
    if kv_heads == 0 || !heads.is_multiple_of(kv_heads) || capacity == 0 {
        faults.add(
            c.at,
            format!("{heads} heads over {kv_heads}, {capacity} positions"),
        );
        return;
    }
    let ld = c.int("ldqkv");
    let kernel = c.variant.kernel.as_str();
    let ends = [
        c.int("q_offset").saturating_add(heads.saturating_mul(dim)),
        c.int("k_offset")
            .saturating_add(kv_heads.saturating_mul(dim)),
        c.int("v_offset")
            .saturating_add(kv_heads.saturating_mul(dim)),
    ];
    let width = match kernel {
        "attention_prefill" => ends[0],
        _ => ends.into_iter().max().unwrap_or(0),
    };
    c.rows("qkv", ld, width, faults);
    c.rows("y", c.int("ldy"), heads.saturating_mul(dim), faults);
    let groups = dim.div_ceil(32);
    let element = if c.define("KV") == 0 { 2 } else { 1 };
    let positions = match c.define("PAGED") {
        // Any page may be named; all sequences' pages are there.
        1 => c.int("max_pages").saturating_mul(c.int("page")),
        _ => capacity,
    };
    let sequences = u64::from(c.plan.shape.batch);
    let vectors = sequences.saturating_mul(positions).saturating_mul(kv_heads);
    for name in ["k_cache", "v_cache"] {
        c.needs(name, faults);
        let have = match c.step.args.get(name) {
            Some(Value::Buffer { name, .. }) => buffer(c.plan, c.program, name).map(|b| b.bytes),
            _ => None,
        };
        let needed = vectors.saturating_mul(dim).saturating_mul(element);
        if have.is_none_or(|have| have < needed) {
            faults.add(
                c.at,
                format!("argument `{name}`: {needed} bytes of cache are used, and it has {have:?}"),
            );
        }
    }
    if c.define("KV") == 1 {
        for name in ["k_scales", "v_scales"] {
            c.needs(name, faults);
            c.holds(name, vectors.saturating_mul(groups), faults);
        }
    }
    if c.define("PAGED") == 1 {
        c.needs("pages", faults);
        c.holds(
            "pages",
            sequences.saturating_mul(c.int("max_pages")),
            faults,
        );
        if c.int("page").saturating_mul(c.int("max_pages")) < capacity {
            faults.add(
                c.at,
                format!(
                    "{} pages of {} do not hold {capacity} positions",
                    c.int("max_pages"),
                    c.int("page")
                ),
            );
        }
    }
    if c.define("QK_NORM") == 1 {
        c.needs("q_gain", faults);
        c.needs("k_gain", faults);
        c.holds("q_gain", dim, faults);
        c.holds("k_gain", dim, faults);
    }
    if c.define("ROPE") != 0 {
        c.needs("inv_freq", faults);
        c.holds("inv_freq", c.int("rotary_dim") / 2, faults);
        if c.int("rotary_dim") > dim {
            faults.add(
                c.at,
                format!(
                    "{} dimensions of a head of {dim} are rotated",
                    c.int("rotary_dim")
                ),
            );
        }
    }
    let group = c.variant.defines.get("GROUP_Q").copied();
    if group.is_some_and(|g| u64::try_from(g).unwrap_or(0) != heads / kv_heads) {
        faults.add(c.at, format!("GROUP_Q is not {}", heads / kv_heads));
    }
    let [x, y, z] = c.step.grid.map(u64::from);
    let tokens = u64::from(c.program.tokens);
    let covered = match kernel {
        "attention_decode" => x == kv_heads && y == c.define("SPLITS") && z == tokens,
        "rope_append" => x == heads + 2 * kv_heads && y.saturating_mul(4) >= tokens,
        _ => x.saturating_mul(64) >= tokens && y == heads,
    };
    if !covered {
        faults.add(
            c.at,
            format!("a grid of {x} × {y} × {z} does not cover {tokens} tokens and {heads} heads"),
        );
    }
    if kernel == "attention_decode" {
        c.holds("positions", tokens, faults);
        c.holds("counter", tokens * kv_heads, faults);
        if c.define("SPLITS") > 1 {
            c.needs("partial", faults);
            let partial = tokens * heads * c.define("SPLITS") * (dim + 2);
            c.holds("partial", partial, faults);
        }
    }
}
