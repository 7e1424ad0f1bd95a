//! Products of at most 8 tokens: the decode kernel, in one launch or, where activations of all tokens are
//! more than shared memory holds, in several over tokens.

use super::{Emit, Growing, Launched, Result, float, int};
use crate::plan::kernels::{self, FusedLaunch, Product};
use crate::plan::{Estimate, PlanError, Value, cost};

/// Activations from which a launch of their own rounds them: every block of a product would do it again,
/// 0.13 us per 1024 of them on an H200 (docs/kernel-notes.md, version 5).
const LONG: u64 = 24 << 10;

/// Arguments, and defines.
pub(super) type Given<'a> = (Vec<(&'a str, Value)>, Vec<(&'static str, i64)>);

/// A variant's index and its launch.
type Chosen = (u32, FusedLaunch);

impl Emit<'_> {
    pub(super) fn few(
        &mut self,
        p: &mut Growing,
        name: &str,
        l: &Launched<'_>,
        (mut given, mut defines): Given<'_>,
        (tiles, rank, coded): (u64, u64, bool),
        estimate: Estimate,
    ) -> Result<()> {
        let job = l.job;
        let cols = l.stack.cols;
        let is_trellis = defines.contains(&("FORMAT", 4));
        let too_long = !self.options.exact && is_trellis && !self.has_room_in_8_bits(&defines, l);
        if too_long {
            let reason =
                "activations stay f16: codes of them, four times each, do not fit shared memory";
            self.note(name, reason);
        }
        let exact = self.options.exact || !coded || too_long;
        let columns = l.stack.base.is_some_and(|b| b.columns);
        let terms = l.stack.factors.is_some() || l.stack.sparse;
        let long = job.tokens * cols >= LONG && !exact && !columns && job.routed.is_none();
        // A norm that terms need as well stays in front of both.
        let (mut xin, norm) = match (&l.rotated, &job.norm) {
            (Some(_), _) | (None, None) => (0, None),
            (None, Some(norm)) => (if norm.layer { 2 } else { 1 }, Some(norm)),
        };
        let rounded = match long && (norm.is_none() || !terms) {
            true => Some(self.rounded(p, job, l.rotated.as_ref())?),
            false => None,
        };
        if let Some(rounded) = &rounded {
            xin = 3;
            given.extend(rounded.iter().cloned());
        }
        if let Some(norm) = norm.filter(|_| rounded.is_none()) {
            let width = self.width_of(norm);
            let vectors = self.norm_weight(norm, width)?;
            given.push(("gain", self.section(&vectors, "gain")));
            given.push(("beta", self.section(&vectors, "beta")));
            given.push(("eps", float(norm.eps)));
        }
        let rotated_stride = cols.next_multiple_of(16);
        let (x, ldx) = match (&l.beside, &l.rotated) {
            (Some(beside), _) => beside.x.clone(),
            (None, Some(x)) => (x.clone(), rotated_stride),
            (None, None) => (job.x.clone(), job.ldx),
        };
        defines.extend([("ACT", i64::from(exact)), ("XIN", xin)]);
        let mut ldt = 0;
        if let Some(beside) = &l.beside {
            defines.push(("ROTATED", if beside.y.is_some() { 2 } else { 1 }));
            let xr = l.rotated.clone().unwrap_or_else(|| x.clone());
            let ldxr = match l.rotated {
                Some(_) => rotated_stride,
                None => ldx,
            };
            given.extend([("xr", xr), ("ldxr", int(ldxr))]);
            if let Some((y, stride)) = &beside.y {
                ldt = *stride;
                given.extend([("y_terms", y.clone()), ("ldt", int(ldt))]);
            }
        }
        let mut top_k = 0;
        if let Some(routed) = &job.routed {
            top_k = routed.top_k;
            defines.push(("EXPERTS", routed.kind));
            given.push(("ids", routed.ids.clone()));
            given.push(("weights", routed.weights.clone()));
            given.push(("top_k", int(top_k)));
        }
        given.push(("ldx", int(ldx)));
        let product = Product {
            tiles,
            cols,
            rank,
            tokens: job.tokens,
            top_k,
        };
        let (tokens, _) = self.most_tokens(name, &defines, &product)?;
        let parts = job.tokens.div_ceil(tokens);
        if parts > 1 {
            self.note(
                name,
                format!("{parts} launches: shared memory holds the activations of {tokens} tokens"),
            );
        }
        for part in 0..parts {
            let first = part * tokens;
            let product = Product {
                tokens: tokens.min(job.tokens - first),
                ..product
            };
            let (index, launch) = self
                .chosen(&defines, &product)
                .ok_or_else(|| no_room(name))?;
            let mut args = given.clone();
            // Rounded inputs are enough for codes alone.
            if xin != 3 || terms {
                args.push(("x", moved(&x, first * ldx * 4)));
            }
            if launch.inner_floats > 0 {
                let inner = p.buffer(&format!("{name}.h"), "f32", &[launch.inner_floats]);
                args.push(("h", inner));
            }
            if launch.counters > 0 {
                args.push(("counter", Value::at("counters", self.counters * 4)));
                // Launches' counters do not share a line of the cache.
                self.counters += launch.counters.next_multiple_of(64);
            }
            let padded = cols.next_multiple_of(64);
            for (name, value) in &mut args {
                let bytes = match *name {
                    "y" => job.ldy * 4,
                    "y_terms" => ldt * 4,
                    "xr" => rotated_stride * 4,
                    "xq" => padded,
                    "xs" | "xsum" => padded / 8,
                    "residual" => job.residual.as_ref().map_or(0, |r| r.1) * 4,
                    _ => 0,
                };
                *value = moved(value, first * bytes);
            }
            let estimate = Estimate {
                flops: estimate.flops / parts,
                ..estimate
            };
            let bits = estimate.bytes as f64 * 8.0 / (tiles * 16 * cols).max(1) as f64;
            let alike = (1.9..4.2).contains(&bits) && (bits - bits.round()).abs() < 0.1;
            let busiest = tiles.div_ceil(u64::from(launch.launch.grid[0]).max(1)) * 16 * cols;
            let estimate = cost::product(
                &self.options.target,
                estimate,
                cost::Beside {
                    inputs: product.tokens * cols,
                    rounded: xin == 3,
                    norm: matches!(xin, 1 | 2),
                    terms,
                    trellis: is_trellis.then_some((busiest, alike)),
                },
            );
            p.push(name, ("fused_linear", index), launch.launch, args, estimate);
        }
        Ok(())
    }

    /// Whether a launch of trellis codes has room for the activations of a token, rounded to 8 bits.
    fn has_room_in_8_bits(&mut self, defines: &[(&'static str, i64)], l: &Launched<'_>) -> bool {
        let mut defines = defines.to_vec();
        defines.extend([("ACT", 0), ("XIN", 0)]);
        let product = Product {
            tiles: l.stack.rows().div_ceil(16),
            cols: l.stack.cols,
            rank: 0,
            tokens: 1,
            top_k: 0,
        };
        self.chosen(&defines, &product).is_some()
    }

    /// How many tokens one launch can take.
    fn most_tokens(
        &mut self,
        name: &str,
        defines: &[(&'static str, i64)],
        product: &Product,
    ) -> Result<(u64, Chosen)> {
        let fewer = |tokens: &u64| product.top_k == 0 || *tokens == product.tokens;
        for tokens in (1..=product.tokens).rev().filter(fewer) {
            let product = Product { tokens, ..*product };
            if let Some(chosen) = self.chosen(defines, &product) {
                return Ok((tokens, chosen));
            }
        }
        Err(no_room(name))
    }

    /// The variant for so many tokens, and its launch.
    fn chosen(&mut self, defines: &[(&'static str, i64)], product: &Product) -> Option<Chosen> {
        let experts = defines
            .iter()
            .find(|(n, _)| *n == "EXPERTS")
            .map_or(0, |d| d.1);
        let m = match experts {
            1 => 1,
            2 => product.top_k,
            _ => product.tokens,
        };
        let mut defines = defines.to_vec();
        defines.push(("M", i64::try_from(m).ok().filter(|m| (1..=8).contains(m))?));
        let count = self.variants.len();
        let trial = self.variant("fused_linear", &defines);
        let variant = self.variants.get(trial as usize)?.clone();
        // The variant that was looked at has neither WARPS nor STAGES yet, and is none of the plan's.
        self.variants.truncate(count);
        let launch = kernels::fused_linear(&variant, &self.options.target, product)?;
        defines.extend([("STAGES", launch.stages), ("WARPS", launch.warps)]);
        Some((self.variant("fused_linear", &defines), launch))
    }
}

fn no_room(name: &str) -> PlanError {
    let problem = "its activations do not fit the target's shared memory, which has no kernel";
    PlanError::unsupported("linear", name, problem)
}

/// A place some bytes further on.
fn moved(value: &Value, bytes: u64) -> Value {
    match value {
        Value::Buffer { name, offset } => Value::at(name.clone(), offset + bytes),
        other => other.clone(),
    }
}
