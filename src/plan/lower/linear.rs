//! Linears as launches: one where terms allow it, several where they do not.

mod few;
mod input;
mod passes;

use super::build::{float, int};
use super::emit::{Emit, Result};
use super::macros::{Elementwise, Macro, Norm, Outputs, Part, Slot, activation_code};
use super::program::Growing;
use super::terms::{self, Terms, format};
use crate::ir::{Activation, OpKind, Role, WeightId};
use crate::plan::kernels;
use crate::plan::pack::recipe::{PartTerms, Recipe, Stack};
use crate::plan::pack::sizes;
use crate::plan::{Place, PlanError, Value, cost};

/// Linears of one input, with places for what goes in and comes out.
#[derive(Clone, Debug)]
pub(super) struct Job {
    /// Parts of each expert; one list without experts.
    pub(super) experts: Vec<Vec<Part>>,
    /// `activation(first) · second`, tile by tile.
    pub(super) gate: Option<Activation>,
    pub(super) activation: Option<Activation>,
    pub(super) softcap: Option<f64>,
    pub(super) norm: Option<Norm>,
    pub(super) x: Value,
    pub(super) ldx: u64,
    pub(super) y: Value,
    pub(super) ldy: u64,
    pub(super) y_slot: Slot,
    pub(super) y_offset: u64,
    pub(super) residual: Option<(Value, u64)>,
    pub(super) residual_slot: Option<Slot>,
    pub(super) tokens: u64,
    pub(super) last: bool,
    /// Which experts see which tokens.
    pub(super) routed: Option<Routed>,
}

/// Which experts see which tokens.
#[derive(Clone, Debug)]
pub(super) struct Routed {
    /// `EXPERTS`: 1 where the input is a row for each token, 2 where it is one for each token's expert.
    pub(super) kind: i64,
    /// The chosen experts `[tokens, top_k]`.
    pub(super) ids: Value,
    /// Their weights.
    pub(super) weights: Value,
    /// How many a token has.
    pub(super) top_k: u64,
    /// Of many tokens: slots (token · top_k + choice) by expert, and where each expert's start.
    pub(super) sorted: Option<(Value, Value)>,
}

/// What one launch does of a job.
struct Launched<'a> {
    stack: Stack,
    /// Terms of the launch's first part.
    scale: f32,
    job: &'a Job,
    /// The input is rotated, and `x` is it.
    rotated: Option<Value>,
    /// What terms beside rotated codes take, and where their sum goes.
    beside: Option<Beside>,
}

/// Terms in the matrix's own coordinates beside codes in rotated ones, in one launch.
struct Beside {
    /// Their input and its row stride.
    x: (Value, u64),
    /// Where results have other coordinates too: what gets theirs, and its row stride.
    y: Option<(Value, u64)>,
}

impl Job {
    /// Of a linear macro; places are still to be filled in.
    pub(super) fn of(step: &Macro) -> Option<Self> {
        let Macro::Linear {
            norm,
            outputs,
            epilogue,
            y,
            y_offset,
            last,
            ..
        } = step
        else {
            return None;
        };
        let (parts, gate) = match outputs {
            Outputs::Rows(parts) => (parts.clone(), None),
            Outputs::Gated {
                gate,
                up,
                activation,
            } => (vec![gate.clone(), up.clone()], Some(*activation)),
        };
        let mut job = Self::experts(vec![parts], gate);
        job.activation = epilogue.activation;
        job.softcap = epilogue.softcap;
        job.norm = norm.clone();
        job.y_slot = *y;
        job.y_offset = *y_offset;
        job.residual_slot = epilogue.residual;
        job.last = *last;
        Some(job)
    }

    /// Of experts, or of one list of parts.
    pub(super) fn experts(experts: Vec<Vec<Part>>, gate: Option<Activation>) -> Self {
        Self {
            experts,
            gate,
            activation: None,
            softcap: None,
            norm: None,
            x: Value::Null,
            ldx: 0,
            y: Value::Null,
            ldy: 0,
            y_slot: Slot(usize::MAX),
            y_offset: 0,
            residual: None,
            residual_slot: None,
            tokens: 1,
            last: false,
            routed: None,
        }
    }

    /// The same for one part, into other columns.
    fn of_part(&self, part: &Part, y_offset: u64) -> Self {
        Self {
            experts: vec![vec![part.clone()]],
            gate: None,
            y_offset,
            ..self.clone()
        }
    }
}

impl Emit<'_> {
    /// Emits a job, in one launch if it can be one.
    pub(super) fn linear(&mut self, p: &mut Growing, name: &str, job: &Job) -> Result<()> {
        let mut all: Vec<Vec<(Part, Terms)>> = Vec::with_capacity(job.experts.len());
        for parts in &job.experts {
            let of = |part: &Part| {
                Ok((
                    part.clone(),
                    terms::terms(self.module, self.graph, part.op)?,
                ))
            };
            all.push(parts.iter().map(of).collect::<Result<_>>()?);
        }
        let Some((first, terms)) = all.iter().flatten().next().cloned() else {
            return Ok(());
        };
        let others = all.iter().flatten();
        for (part, _) in others
            .clone()
            .filter(|(_, t)| t.bases.iter().any(|b| b.merged))
        {
            self.note(
                &part.name,
                "kept multiplied out in f16: its terms take as many bytes, and a launch more time",
            );
        }
        let differs = others.clone().find_map(|(_, t)| t.differs_from(&terms));
        let alone = all.len() == 1 && all[0].len() == 1;
        if alone && !terms.is_plain() {
            return self.passes(p, name, job, &first, &terms);
        }
        let Some(why) = differs.filter(|_| !alone) else {
            return self.whole(p, name, job, &all, &terms);
        };
        if job.routed.is_some() {
            let problem = format!(
                "its experts can't be one launch: {why}; use one integer pass for all of them"
            );
            return Err(PlanError::unsupported("moe", name, problem));
        }
        let parts = all.into_iter().flatten();
        self.note(
            name,
            format!("{} launches instead of one: {why}", parts.clone().count()),
        );
        match job.gate {
            None => {
                let mut at = job.y_offset;
                for (part, _) in parts {
                    let one = job.of_part(&part, at);
                    at += part.padded();
                    self.linear(p, &part.name, &one)?;
                }
                Ok(())
            }
            Some(activation) => {
                let mut halves = Vec::new();
                for (part, _) in parts {
                    let mut one = job.of_part(&part, 0);
                    one.y = p.buffer(
                        &format!("{}.y", part.name),
                        "f32",
                        &[job.tokens, part.padded()],
                    );
                    one.ldy = part.padded();
                    self.linear(p, &part.name, &one)?;
                    halves.push((one.y, one.ldy));
                }
                if let [a, b] = halves.as_slice() {
                    let y = (job.y.clone(), job.ldy);
                    let op = Elementwise::Gate(activation);
                    self.elementwise(p, name, op, a.clone(), Some(b.clone()), y, job.ldy);
                }
                Ok(())
            }
        }
    }

    /// All terms of all parts in one launch.
    fn whole(
        &mut self,
        p: &mut Growing,
        name: &str,
        job: &Job,
        all: &[Vec<(Part, Terms)>],
        terms: &Terms,
    ) -> Result<()> {
        let mut base = terms.bases.first().copied();
        if let Some(base) = &mut base {
            base.term = 0;
        }
        let part = |(part, terms): &(Part, Terms)| PartTerms {
            part: match self.role(part) {
                Some(Role::Head) => self.canonical(part),
                _ => part.clone(),
            },
            base: terms.bases.first().map(|b| b.term),
            low_rank: terms.low_rank.clone(),
            sparse: terms.sparse.clone(),
            bias: self.bias(part),
        };
        let experts: Vec<Vec<PartTerms>> =
            all.iter().map(|e| e.iter().map(part).collect()).collect();
        let stack = Stack {
            interleaved: job.gate.is_some(),
            cols: self.columns(&experts)?,
            base: base.map(|b| terms::Base { term: 0, ..b }),
            factors: all.iter().flatten().find_map(|(_, t)| t.factors),
            sparse: all.iter().flatten().any(|(_, t)| !t.sparse.is_empty()),
            bias: experts.iter().flatten().any(|p| p.bias.is_some()),
            scale_bits: terms.scale.to_bits(),
            experts,
        };
        let launched = Launched {
            stack,
            scale: terms.scale,
            job,
            rotated: None,
            beside: None,
        };
        self.launch(p, name, &launched)
    }

    fn role(&self, part: &Part) -> Option<Role> {
        match self.graph.op(part.op).map(|op| &op.kind) {
            Some(OpKind::Linear(linear)) => Some(linear.role),
            _ => None,
        }
    }

    pub(super) fn bias(&self, part: &Part) -> Option<WeightId> {
        match self.graph.op(part.op).map(|op| &op.kind) {
            Some(OpKind::Linear(linear)) => linear.bias,
            _ => None,
        }
    }

    fn columns(&self, experts: &[Vec<PartTerms>]) -> Result<u64> {
        let Some(first) = experts.iter().flatten().next() else {
            return Ok(0);
        };
        let (matrix, _) = terms::matrix(self.graph, first.part.op)?;
        Ok(matrix.in_features)
    }

    /// One launch.
    fn launch(&mut self, p: &mut Growing, name: &str, l: &Launched<'_>) -> Result<()> {
        let (stack, job) = (&l.stack, l.job);
        let tiles = stack.rows() / 16;
        let rank = match stack.factors {
            Some(_) => sizes::rank(self.graph, stack)?,
            None => 0,
        };
        let parts = stack
            .experts
            .iter()
            .flatten()
            .map(|p| p.part.name.clone())
            .collect();
        let pack = match stack.base {
            Some(base) if base.format == format::TRELLIS => "tile16x16",
            Some(_) => "tile16x64",
            None => "terms",
        };
        let rows = stack.rows() * stack.experts.len() as u64;
        let recipe = Recipe::Matrix(stack.clone());
        let weight = self.weight(name, pack, (rows, stack.cols), parts, recipe)?;
        let base = stack.base;
        let (v, u) = stack.factors.unwrap_or((0, 0));
        let coded = base.is_some_and(|b| b.format == format::CODES || b.format == format::TRELLIS);
        let defines = vec![
            ("FORMAT", base.map_or(format::NONE, |b| b.format)),
            ("BITS", base.map_or(0, |b| b.bits)),
            ("GROUP", base.map_or(0, |b| b.group)),
            ("ZEROS", i64::from(base.is_some_and(|b| b.zeros))),
            ("XSCALE", i64::from(base.is_some_and(|b| b.columns))),
            ("LOWRANK", i64::from(stack.factors.is_some())),
            ("VFORMAT", v),
            ("UFORMAT", u),
            ("SPARSE", i64::from(stack.sparse)),
            ("ACTIVATION", activation_code(job.gate.or(job.activation))),
            ("GLU", i64::from(job.gate.is_some())),
            ("BIAS", i64::from(stack.bias)),
            ("RESIDUAL", i64::from(job.residual.is_some())),
            ("SOFTCAP", i64::from(job.softcap.is_some())),
        ];
        let mut given: Vec<(&str, Value)> = Vec::new();
        let sections = [
            "q",
            "scales",
            "zeros",
            "xscale",
            "v",
            "v_scales",
            "v_tiles",
            "v_index",
            "u",
            "u_scales",
            "u_tiles",
            "u_index",
            "s",
            "s_offsets",
            "bias",
        ];
        given.extend(sections.map(|s| (s, self.section(&weight, s))));
        let y = match &job.y {
            Value::Buffer { name, offset } => Value::at(name.clone(), offset + job.y_offset * 4),
            other => other.clone(),
        };
        let (residual, ldr) = job.residual.clone().unwrap_or((Value::Null, 0));
        given.extend([
            ("residual", residual),
            ("y", y),
            ("rows", int(stack.rows())),
            ("cols", int(stack.cols)),
            ("tiles", int(tiles)),
            ("ldy", int(job.ldy)),
            ("ldr", int(ldr)),
            ("rank", int(rank)),
            ("scale", Value::Float(l.scale)),
            ("softcap", float(job.softcap.unwrap_or(0.0))),
        ]);
        let experts = stack.experts.len() as u64;
        let (slots, share) = match &job.routed {
            Some(routed) => {
                let chosen = (job.tokens * routed.top_k).min(experts);
                let share = chosen as f64 / experts.max(1) as f64;
                (job.tokens * routed.top_k, share)
            }
            None => (job.tokens, 1.0),
        };
        let entries = stack.rows().saturating_mul(stack.cols);
        let flops = 2 * slots * (entries + rank * (stack.rows() + stack.cols));
        let bytes = (self.weight_bytes(&weight) as f64 * share) as u64;
        let bytes = bytes + slots * 4 * (stack.cols + stack.rows());
        let estimate = self.estimate(Place::Device, bytes, flops, true);
        if job.tokens > 8 {
            let x = match &l.rotated {
                Some(x) => x.clone(),
                None => self.halves(p, job)?,
            };
            let h = match rank {
                0 => Value::Null,
                _ => p.buffer(&format!("{name}.h"), "f32", &[slots, rank]),
            };
            given.extend([
                ("x", x),
                ("h", h),
                ("ldx", int(stack.cols.next_multiple_of(64))),
            ]);
            let mut defines = defines;
            match &job.routed {
                None => given.push(("scalars", self.scalars(p))),
                Some(routed) => {
                    defines.push(("EXPERTS", routed.kind));
                    let (slots, starts) =
                        routed.sorted.clone().unwrap_or((Value::Null, Value::Null));
                    given.extend([
                        ("slots", slots),
                        ("starts", starts),
                        ("top_k", int(routed.top_k)),
                    ]);
                }
            }
            // Without experts there is one list of parts.
            if rank > 0 {
                self.inner(p, name, &given, &defines, (slots, rank, experts));
            }
            let index = self.variant("linear_prefill", &defines);
            let block_tokens = kernels::prefill_tokens(&self.variants[index as usize]);
            let launch = kernels::linear_prefill(job.tokens, tiles, experts, block_tokens);
            let blocks = slots.div_ceil(block_tokens) * tiles.div_ceil(kernels::PREFILL_TILES);
            let of = cost::Blocks {
                count: blocks,
                tokens: block_tokens,
                columns: stack.cols + rank,
            };
            let estimate = cost::prompt(
                &self.options.target,
                &self.variants[index as usize],
                estimate,
                of,
            );
            p.push(name, ("linear_prefill", index), launch, given, estimate);
            return Ok(());
        }
        self.few(p, name, l, (given, defines), (tiles, rank, coded), estimate)
    }

    /// `h = V x` of many tokens, in front of the launch that multiplies it with U.
    fn inner(
        &mut self,
        p: &mut Growing,
        name: &str,
        given: &[(&str, Value)],
        defines: &[(&str, i64)],
        (slots, rank, experts): (u64, u64, u64),
    ) {
        let format = defines.iter().find(|d| d.0 == "VFORMAT").copied();
        let own = defines
            .iter()
            .filter(|d| matches!(d.0, "VFORMAT" | "EXPERTS"));
        let own: Vec<(&str, i64)> = own.copied().collect();
        let index = self.variant("low_rank_inner", &own);
        let taken = [
            "x", "v", "v_scales", "v_tiles", "v_index", "h", "scalars", "slots", "starts", "ldx",
            "rank", "top_k",
        ];
        let own = given.iter().filter(|g| taken.contains(&g.0)).cloned();
        let own: Vec<(&str, Value)> = own.collect();
        let columns = own.iter().find(|g| g.0 == "ldx").map_or(0, |g| match g.1 {
            Value::Int(n) => u64::try_from(n).unwrap_or(0),
            _ => 0,
        });
        let flops = 2 * slots * rank * columns;
        let bits = u64::try_from(format.map_or(0, |f| f.1)).unwrap_or(0);
        let bytes = experts * rank * columns * bits / 8 + slots * (2 * columns + 4 * rank);
        let estimate = self.estimate(Place::Device, bytes, flops, false);
        let launch = kernels::low_rank_inner(p.tokens, rank, experts);
        p.push(
            &format!("{name}.inner"),
            ("low_rank_inner", index),
            launch,
            own,
            estimate,
        );
    }
}
