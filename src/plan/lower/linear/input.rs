//! Activations in the forms that launches take: normed, rotated, as f16. Each is made once.

use super::{Emit, Growing, Job, Result, Value};
use crate::numeric::hadamard::Rotation;
use crate::plan::kernels::Launch;
use crate::plan::lower::build::{int, per_part};
use crate::plan::{Place, cost};

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
        // Rows of tokens' experts: how many there are is no device scalar, and nobody reads the others.
        let (rows, scalars) = match &job.routed {
            Some(routed) if routed.kind == 2 => (job.tokens * routed.top_k, Value::Null),
            _ => (job.tokens, self.scalars(p)),
        };
        let y = match &job.norm {
            Some(norm) => {
                let name = unique(p, &format!("{}.f16", norm.name));
                let y = p.buffer(&name, "f16", &[job.tokens, padded]);
                self.norm_half(p, norm, job, (y.clone(), padded))?;
                y
            }
            None => {
                let name = unique(p, &format!("{}.f16", job.x));
                let y = p.buffer(&name, "f16", &[rows, padded]);
                let index = self.variant("quantize", &[("OUT", 1)]);
                let estimate =
                    self.estimate(Place::Device, rows * columns * 6, rows * columns, false);
                let given = vec![
                    ("x", job.x.clone()),
                    ("y16", y.clone()),
                    ("scalars", scalars),
                    ("width", int(columns)),
                    ("ldx", int(job.ldx)),
                    ("ldy", int(padded)),
                ];
                let launch = per_part(rows, columns, 2048);
                p.push(&name, ("quantize", index), launch, given, estimate);
                y
            }
        };
        p.made.insert(key, y.clone());
        Ok(y)
    }

    /// A job's input in 8 bits, behind its norm or rotated, as the arguments of a product.
    pub(super) fn rounded(
        &mut self,
        p: &mut Growing,
        job: &Job,
        rotated: Option<&Value>,
    ) -> Result<[(&'static str, Value); 3]> {
        let columns = self.columns_of(job)?;
        let norm = job.norm.as_ref().filter(|_| rotated.is_none());
        let (x, ldx) = match rotated {
            Some(x) => (x.clone(), columns.next_multiple_of(16)),
            None => (job.x.clone(), job.ldx),
        };
        let base = match norm {
            Some(norm) => norm.name.clone(),
            None => x.to_string(),
        };
        let key = |part: &str| format!("{x} {base} {part}");
        let found = ["q8", "q8.scales", "q8.sums"].map(|part| p.made.get(&key(part)).cloned());
        if let [Some(codes), Some(scales), Some(sums)] = found {
            return Ok([("xq", codes), ("xs", scales), ("xsum", sums)]);
        }
        let padded = columns.next_multiple_of(64);
        let codes = unique(p, &format!("{base}.q8"));
        let scales = unique(p, &format!("{base}.q8.scales"));
        let sums = unique(p, &format!("{base}.q8.sums"));
        let codes = p.buffer(&codes, "s8", &[job.tokens, padded]);
        let scales = p.buffer(&scales, "f32", &[job.tokens, padded / 32]);
        let sums = p.buffer(&sums, "i32", &[job.tokens, padded / 32]);
        let outputs = [
            ("yq", codes.clone()),
            ("ys", scales.clone()),
            ("ysum", sums.clone()),
        ];
        match norm {
            Some(norm) => {
                self.norm(
                    p,
                    &norm.name,
                    norm,
                    (x.clone(), ldx),
                    None,
                    (codes.clone(), "yq"),
                    2,
                )?;
                if let Some(step) = p.steps.last_mut() {
                    for (name, value) in outputs {
                        step.args.set(name, value);
                    }
                }
            }
            None => {
                let index = self.variant("quantize", &[("OUT", 2)]);
                let bytes = job.tokens * columns * 5;
                let estimate = self.estimate(Place::Device, bytes, job.tokens * columns * 2, false);
                let mut given = vec![
                    ("x", x.clone()),
                    ("scalars", self.scalars(p)),
                    ("width", int(columns)),
                    ("ldx", int(ldx)),
                ];
                given.extend(outputs);
                let launch = per_part(job.tokens, columns, 2048);
                p.push(
                    &format!("{base}.q8"),
                    ("quantize", index),
                    launch,
                    given,
                    estimate,
                );
            }
        }
        for (part, value) in [("q8", &codes), ("q8.scales", &scales), ("q8.sums", &sums)] {
            p.made.insert(key(part), value.clone());
        }
        Ok([("xq", codes), ("xs", scales), ("xsum", sums)])
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
        let estimate = cost::rotation(estimate, side.block as u64);
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

    /// A rotation of whole rows of `width`, or its inverse.
    pub(in crate::plan::lower) fn hadamard(
        &mut self,
        p: &mut Growing,
        name: &str,
        (rotation, inverse): (Rotation, bool),
        (x, y): (Value, Value),
        width: u64,
    ) -> Result<()> {
        let signs = self.signs(&format!("rotation.{width}"), rotation, width)?;
        let index = self.variant("hadamard", &[("INVERSE", i64::from(inverse))]);
        let flops = p.tokens * width * u64::from(rotation.block.trailing_zeros());
        let estimate = self.estimate(Place::Device, p.tokens * width * 8, flops, false);
        let estimate = cost::rotation(estimate, rotation.block as u64);
        let given = vec![
            ("x", x),
            ("signs", self.section(&signs, "signs")),
            ("y", y),
            ("scalars", self.scalars(p)),
            ("width", int(width)),
            ("ldx", int(width)),
            ("ldy", int(width)),
            ("block", int(rotation.block as u64)),
        ];
        let launch = turn(p.tokens, width);
        p.push(name, ("hadamard", index), launch, given, estimate);
        Ok(())
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
    per_part(tokens, columns, 1024)
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
