//! Activations in the forms that launches take: normed, rotated, as f16. Each is made once.

use super::{Emit, Growing, Job, Result, Value};
use crate::numeric::hadamard::Rotation;
use crate::plan::Place;
use crate::plan::kernels::Launch;
use crate::plan::lower::build::{int, per_token};

impl Emit<'_> {
    /// A job's input behind its norm, in f32, and its row stride.
    pub(super) fn normed(&mut self, p: &mut Growing, job: &Job) -> Result<(Value, u64)> {
        let Some(norm) = &job.norm else {
            return Ok((job.x.clone(), job.ldx));
        };
        let width = self.width_of(norm).next_multiple_of(16);
        let key = format!("{} {}", job.x, norm.name);
        if let Some(made) = p.made.get(&key) {
            return Ok((made.clone(), width));
        }
        let y = p.buffer(&unique(p, &norm.name), "f32", &[job.tokens, width]);
        self.norm(
            p,
            &norm.name,
            norm,
            (job.x.clone(), job.ldx),
            None,
            (y.clone(), "y"),
            0,
        )?;
        self.note(
            &norm.name,
            "a launch of its own: its result is rotated before it is multiplied",
        );
        p.made.insert(key, y.clone());
        Ok((y, width))
    }

    /// A job's input behind its norm, as f16 rows padded to 64.
    pub(super) fn halves(&mut self, p: &mut Growing, job: &Job) -> Result<Value> {
        let named = job.norm.as_ref().map_or("", |n| &n.name);
        let key = format!("{} {named} f16", job.x);
        if let Some(made) = p.made.get(&key) {
            return Ok(made.clone());
        }
        let columns = self.columns_of(job)?;
        let padded = columns.next_multiple_of(64);
        let y = match &job.norm {
            Some(norm) => {
                let name = unique(p, &format!("{}.f16", norm.name));
                let y = p.buffer(&name, "f16", &[job.tokens, padded]);
                self.norm_half(p, norm, job, (y.clone(), padded))?;
                y
            }
            None => {
                let name = unique(p, &format!("{}.f16", job.x));
                let y = p.buffer(&name, "f16", &[job.tokens, padded]);
                let index = self.variant("quantize", &[("OUT", 1)]);
                let estimate = self.estimate(
                    Place::Device,
                    job.tokens * columns * 6,
                    job.tokens * columns,
                    false,
                );
                let given = vec![
                    ("x", job.x.clone()),
                    ("y16", y.clone()),
                    ("scalars", self.scalars(p)),
                    ("width", int(columns)),
                    ("ldx", int(job.ldx)),
                    ("ldy", int(padded)),
                ];
                p.push(
                    &name,
                    ("quantize", index),
                    per_token(job.tokens, 256),
                    given,
                    estimate,
                );
                y
            }
        };
        p.made.insert(key, y.clone());
        Ok(y)
    }

    fn norm_half(
        &mut self,
        p: &mut Growing,
        norm: &super::Norm,
        job: &Job,
        (y, ldy): (Value, u64),
    ) -> Result<()> {
        self.norm(
            p,
            &norm.name,
            norm,
            (job.x.clone(), job.ldx),
            None,
            (y, "y16"),
            1,
        )?;
        if let Some(step) = p.steps.last_mut() {
            step.args.set("ldy", int(ldy));
        }
        Ok(())
    }

    /// A job's input behind its norm and a rotation: f32, or f16 for many tokens.
    pub(super) fn rotated(&mut self, p: &mut Growing, job: &Job, side: Rotation) -> Result<Value> {
        let named = job.norm.as_ref().map_or("", |n| &n.name);
        let half = job.tokens > 8;
        let key = format!("{} {named} {side:?} {half}", job.x);
        if let Some(made) = p.made.get(&key) {
            return Ok(made.clone());
        }
        let (x, ldx) = self.normed(p, job)?;
        let columns = self.columns_of(job)?;
        let signs = self.signs(&format!("rotation.{columns}"), side, columns)?;
        let name = unique(p, &format!("{x}.rotated"));
        let (dtype, padded, arg) = match half {
            true => ("f16", columns.next_multiple_of(64), "y16"),
            false => ("f32", columns.next_multiple_of(16), "y"),
        };
        let y = p.buffer(&name, dtype, &[job.tokens, padded]);
        let index = self.variant("hadamard", &[("OUT", i64::from(half))]);
        let launch = turn(job.tokens, columns);
        let flops = job.tokens * columns * u64::from(side.block.trailing_zeros());
        let estimate = self.estimate(Place::Device, job.tokens * columns * 8, flops, false);
        let given = vec![
            ("x", x),
            ("signs", self.section(&signs, "signs")),
            (arg, y.clone()),
            ("scalars", self.scalars(p)),
            ("width", int(columns)),
            ("ldx", int(ldx)),
            ("ldy", int(padded)),
            ("block", int(side.block as u64)),
        ];
        p.push(&name, ("hadamard", index), launch, given, estimate);
        p.made.insert(key, y.clone());
        Ok(y)
    }

    pub(super) fn columns_of(&self, job: &Job) -> Result<u64> {
        let Some(part) = job.experts.iter().flatten().next() else {
            return Ok(0);
        };
        let (matrix, _) = super::terms::matrix(self.graph, part.op)?;
        Ok(matrix.in_features)
    }
}

/// A launch of the rotation: 1024 columns of a token to a block.
pub(super) fn turn(tokens: u64, columns: u64) -> Launch {
    let mut launch = per_token(tokens, 256);
    launch.grid[1] = u32::try_from(columns.div_ceil(1024)).unwrap_or(u32::MAX);
    launch
}

/// A name that no buffer of the program has.
pub(super) fn unique(p: &Growing, name: &str) -> String {
    let taken = |name: &str| p.buffers.iter().any(|b| b.name == name);
    let mut found = name.to_string();
    let mut count = 2;
    while taken(&found) {
        found = format!("{name}.{count}");
        count += 1;
    }
    found
}
