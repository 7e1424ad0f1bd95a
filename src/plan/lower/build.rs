//! Macros as launches, but for linears and attention.

use super::emit::{Emit, Result};
use super::linear::Job;
use super::macros::{Elementwise, Macro, Norm, Part, Slot};
use super::program::Growing;
use super::terms::{self, format};
use crate::plan::kernels::Launch;
use crate::plan::pack::recipe::{PartTerms, Recipe, Stack};
use crate::plan::{Estimate, Place, PlanError, Program, Value, cost};

/// Rows of a launch with one block per token.
pub(super) fn per_token(tokens: u64, block: u32) -> Launch {
    Launch {
        grid: [u32::try_from(tokens).unwrap_or(u32::MAX), 1, 1],
        block,
        shared_bytes: 0,
    }
}

/// A launch of a block for each token and so many columns of it.
pub(super) fn per_part(tokens: u64, columns: u64, part: u64) -> Launch {
    let mut launch = per_token(tokens, 256);
    launch.grid[1] = u32::try_from(columns.div_ceil(part).max(1)).unwrap_or(u32::MAX);
    launch
}

pub(super) fn int(n: u64) -> Value {
    Value::Int(i64::try_from(n).unwrap_or(i64::MAX))
}

pub(super) fn float(x: f64) -> Value {
    Value::Float(x as f32)
}

impl Emit<'_> {
    /// One program.
    pub(super) fn program(&mut self, macros: &[Macro], mut p: Growing) -> Result<Program> {
        for step in macros {
            self.step(&mut p, step)?;
        }
        let rows = if p.prefill { 1 } else { p.tokens };
        let index = self.variant("sample", &[]);
        let bytes = self.vocabulary * 4 * rows;
        let estimate = self.estimate(Place::Device, bytes, self.vocabulary * rows, false);
        let estimate = cost::sampling(estimate, self.vocabulary);
        let given = vec![
            ("logits", Value::buffer("logits")),
            ("token", Value::buffer("sampled")),
            ("params", Value::buffer("sampling")),
            ("top_k", Value::buffer("sampling_top_k")),
            ("rows", int(self.vocabulary)),
            ("ldl", int(self.width(self.logits))),
        ];
        p.push(
            "sample",
            ("sample", index),
            per_token(rows, 1024),
            given,
            estimate,
        );
        let mut scalars: Vec<String> = match p.prefill {
            true => ["prompt", "prompt_positions", "scalars"]
                .map(String::from)
                .to_vec(),
            false => ["tokens", "positions"].map(String::from).to_vec(),
        };
        scalars.extend(["sampling".to_string(), "sampling_top_k".to_string()]);
        Ok(p.finish(&self.variants, &scalars))
    }

    fn step(&mut self, p: &mut Growing, step: &Macro) -> Result<()> {
        match step {
            Macro::Embed {
                name,
                table,
                positions,
                y,
                add,
                scale,
            } => self.embed(p, name, table, (*positions, *add), *y, *scale),
            Macro::Norm {
                name,
                norm,
                x,
                residual,
                y,
            } => {
                let (x, y) = (self.slot(p, *x), self.slot(p, *y));
                let width = self.width_of(norm);
                let residual = residual.map(|r| self.slot(p, r));
                self.norm(p, name, norm, (x, width), residual, (y, "y"), 0)
            }
            Macro::Linear { name, x, .. } => {
                let job = Job::of(step);
                let Some(mut job) = job else { return Ok(()) };
                if job.last && p.prefill {
                    self.refuse_rotated(name, &job)?;
                    job.x = self.last_row(p, *x);
                    job.tokens = 1;
                    job.y = Value::buffer("logits");
                } else {
                    job.x = self.slot(p, *x);
                    job.tokens = p.tokens;
                    job.y = self.slot(p, job.y_slot);
                }
                job.ldx = self.width(*x);
                job.ldy = self.width(job.y_slot);
                job.residual = job.residual_slot.map(|r| (self.slot(p, r), self.width(r)));
                self.linear(p, name, &job)
            }
            Macro::Attend {
                name,
                attention,
                qkv,
                y,
            } => self.attend(p, name, attention, *qkv, *y),
            Macro::Experts { .. } => self.experts(p, step),
            Macro::Hadamard {
                name,
                rotation,
                inverse,
                x,
                y,
            } => {
                let width = self.width(*x);
                let (x, y) = (self.slot(p, *x), self.slot(p, *y));
                self.hadamard(p, name, (*rotation, *inverse), (x, y), width)
            }
            Macro::Elementwise { name, op, a, b, y } => {
                let width = self.width(*y);
                let a = (self.slot(p, *a), self.width(*a));
                let b = b.map(|b| (self.slot(p, b), self.width(b)));
                let y = self.slot(p, *y);
                self.elementwise(p, name, *op, a, b, (y, width), width);
                Ok(())
            }
        }
    }

    /// The buffer of a slot.
    pub(super) fn slot(&self, p: &mut Growing, slot: Slot) -> Value {
        match slot == self.logits {
            true => Value::buffer("logits"),
            false => p.slot(slot, &self.slots),
        }
    }

    /// The device scalars that say how many tokens there are, in a prompt.
    pub(super) fn scalars(&self, p: &Growing) -> Value {
        match p.prefill {
            true => Value::buffer("scalars"),
            false => Value::Null,
        }
    }

    pub(super) fn estimate(&self, place: Place, bytes: u64, flops: u64, tensor: bool) -> Estimate {
        cost::estimate(&self.options.target, place, bytes, flops, tensor)
    }

    /// The width of what a norm is of.
    pub(super) fn width_of(&self, norm: &Norm) -> u64 {
        let gain = self.module.weight(norm.gain);
        gain.and_then(|w| w.elements()).unwrap_or(0)
    }

    /// Launches that turn activations are for all tokens of a prompt, not for its last alone.
    fn refuse_rotated(&self, name: &str, job: &Job) -> Result<()> {
        for part in job.experts.iter().flatten() {
            let (matrix, _) = terms::matrix(self.graph, part.op)?;
            if matrix.terms.iter().any(|t| t.rotation().is_some()) {
                let problem = "a head of rotated codes has no kernel for the last token of a prompt; \
                               give the vocabulary a pass that does not rotate, as `vocabulary(int4)`";
                return Err(PlanError::unsupported("linear", name, problem));
            }
        }
        Ok(())
    }

    /// Copies the last token's row to a buffer of its own.
    fn last_row(&mut self, p: &mut Growing, x: Slot) -> Value {
        if let Some(value) = p.last.get(&x) {
            return value.clone();
        }
        let width = self.width(x);
        let from = self.slot(p, x);
        let to = p.buffer("last", "f32", &[1, width]);
        self.elementwise(
            p,
            "last",
            Elementwise::Last,
            (from, width),
            None,
            (to.clone(), width),
            width,
        );
        p.last.insert(x, to.clone());
        to
    }

    #[allow(clippy::too_many_arguments)] // one for each of the kernel's
    pub(super) fn elementwise(
        &mut self,
        p: &mut Growing,
        name: &str,
        op: Elementwise,
        (a, lda): (Value, u64),
        b: Option<(Value, u64)>,
        (y, ldy): (Value, u64),
        width: u64,
    ) {
        let index = self.variant(
            "elementwise",
            &[("OP", op.code()), ("ACTIVATION", op.activation())],
        );
        let rows = if op == Elementwise::Last { 1 } else { p.tokens };
        let operands = 2 + u64::from(b.is_some());
        let estimate = self.estimate(
            Place::Device,
            rows * width * 4 * operands,
            rows * width,
            false,
        );
        let (b, ldb) = b.unwrap_or((Value::Null, 0));
        let given = vec![
            ("a", a),
            ("b", b),
            ("y", y),
            ("scalars", self.scalars(p)),
            ("width", int(width)),
            ("lda", int(lda)),
            ("ldb", int(ldb)),
            ("ldy", int(ldy)),
            ("factor", float(op.factor())),
        ];
        let launch = per_part(rows, width, 1024);
        p.push(name, ("elementwise", index), launch, given, estimate);
    }

    /// A norm of its own; `out` 0 is f32, 1 is f16.
    #[allow(clippy::too_many_arguments)] // one for each of the kernel's
    pub(super) fn norm(
        &mut self,
        p: &mut Growing,
        name: &str,
        norm: &Norm,
        (x, ldx): (Value, u64),
        residual: Option<Value>,
        (y, arg): (Value, &'static str),
        out: i64,
    ) -> Result<()> {
        let width = self.width_of(norm);
        let weight = self.norm_weight(norm, width)?;
        let defines = [
            ("KIND", i64::from(norm.layer)),
            ("RESIDUAL", i64::from(residual.is_some())),
            ("OUT", out),
        ];
        let index = self.variant("normalize", &defines);
        let padded = width.next_multiple_of(16);
        let estimate = self.estimate(
            Place::Device,
            p.tokens * width * 8,
            p.tokens * width * 4,
            false,
        );
        let estimate = cost::normalize(estimate, width);
        let given = vec![
            ("x", x),
            ("gain", self.section(&weight, "gain")),
            ("beta", self.section(&weight, "beta")),
            ("residual", residual.unwrap_or(Value::Null)),
            (arg, y),
            ("scalars", self.scalars(p)),
            ("width", int(width)),
            ("ldx", int(ldx.next_multiple_of(16))),
            ("ldy", int(padded)),
            ("eps", float(norm.eps)),
        ];
        p.push(
            name,
            ("normalize", index),
            per_token(p.tokens, 256),
            given,
            estimate,
        );
        Ok(())
    }

    fn embed(
        &mut self,
        p: &mut Growing,
        name: &str,
        table: &Part,
        (positions, add): (bool, bool),
        y: Slot,
        scale: f64,
    ) -> Result<()> {
        let found = terms::terms(self.module, self.graph, table.op)?;
        let (matrix, _) = terms::matrix(self.graph, table.op)?;
        let (rows, cols) = (matrix.out_features, matrix.in_features);
        let simple = found.is_plain() && found.low_rank.is_empty() && found.sparse.is_empty();
        let base = found
            .bases
            .first()
            .copied()
            .filter(|b| simple && b.format != format::TRELLIS && !b.columns);
        let (weight, base) = match base {
            Some(base) => {
                let stack = Stack {
                    experts: vec![vec![PartTerms {
                        part: self.canonical(table),
                        base: Some(base.term),
                        low_rank: Vec::new(),
                        sparse: Vec::new(),
                        bias: None,
                    }]],
                    interleaved: false,
                    cols,
                    base: Some(base),
                    factors: None,
                    sparse: false,
                    bias: false,
                    scale_bits: 1f32.to_bits(),
                };
                let parts = vec![table.name.clone()];
                let weight = self.weight(
                    name,
                    "tile16x64",
                    (table.padded(), cols),
                    parts,
                    Recipe::Matrix(stack),
                )?;
                (weight, base)
            }
            None => {
                self.note(
                    name,
                    "its rows are kept multiplied out in f16: a lookup reads one term, in groups along `in`",
                );
                let base = terms::Base::dense(0, format::F16);
                let recipe = Recipe::Dense(self.canonical(table));
                let parts = vec![table.name.clone()];
                let weight = self.weight(
                    &format!("{name}.rows"),
                    "tile16x64",
                    (table.padded(), cols),
                    parts,
                    recipe,
                )?;
                (weight, base)
            }
        };
        let defines = [
            ("FORMAT", base.format),
            ("BITS", base.bits),
            ("GROUP", base.group),
            ("ZEROS", i64::from(base.zeros)),
        ];
        let index = self.variant("embed", &defines);
        let ids = match (p.prefill, positions) {
            (false, false) => "tokens",
            (false, true) => "positions",
            (true, false) => "prompt",
            (true, true) => "prompt_positions",
        };
        let width = self.width(y);
        let bytes = self.weight_bytes(&weight) / rows.max(1) * 2 + width * 4;
        let estimate = self.estimate(Place::Device, p.tokens * bytes, p.tokens * width, false);
        let estimate = cost::embedding(estimate, width);
        let given = vec![
            ("ids", Value::buffer(ids)),
            ("scalars", self.scalars(p)),
            ("q", self.section(&weight, "q")),
            ("scales", self.section(&weight, "scales")),
            ("zeros", self.section(&weight, "zeros")),
            ("y", self.slot(p, y)),
            ("rows", int(rows)),
            ("width", int(cols)),
            ("ldy", int(width)),
            ("add", Value::Int(i64::from(add))),
            ("scale", float(scale)),
        ];
        p.push(
            name,
            ("embed", index),
            per_token(p.tokens, 256),
            given,
            estimate,
        );
        Ok(())
    }

    /// The same rows of the same matrix under one name: a tied head and the table are one.
    pub(super) fn canonical(&self, part: &Part) -> Part {
        let Ok((matrix, _)) = terms::matrix(self.graph, part.op) else {
            return part.clone();
        };
        let ids = self.graph.walk();
        let same = ids.iter().find(|&&id| {
            let other = self.graph.op(id).and_then(|op| op.kind.matrix());
            other == Some(matrix)
        });
        let Some(&id) = same else { return part.clone() };
        let name = self
            .graph
            .op(id)
            .map_or_else(String::new, |op| op.name.clone());
        Part {
            op: id,
            name,
            rows: part.rows.clone(),
        }
    }
}
