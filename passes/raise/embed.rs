//! Linears over views, embeddings of positions and of constants.

use super::expr::Expr;
use super::sample::{PROBES, Size};
use super::tensor::Tensor;
use super::view::{Source, View, tidy};
use super::{In, Raiser};
use crate::ir::{
    Attr, Attrs, Embedding, Layout, Linear, Matrix, Native, Op, OpKind, Operand, Storage, Weight,
    WeightId, WeightView,
};

impl Raiser<'_> {
    /// A linear of a value in another shape is a linear of the value.
    pub(super) fn linear(&mut self, op: &Op, linear: &Linear) -> Option<Expr> {
        let plain = self.linear_of_view(op, linear);
        self.walsh_of(op, linear, plain.as_ref().and_then(Expr::view))
            .or(plain)
    }

    fn linear_of_view(&mut self, op: &Op, linear: &Linear) -> Option<Expr> {
        let input = *op.inputs.first()?;
        let view = self.leaf(input)?;
        if view.is_whole() || linear.layout != Layout::Rows {
            return None;
        }
        let settled = self.settled(&view)?;
        if !settled.keeps_columns() {
            return None;
        }
        let out = usize::try_from(linear.matrix.out_features).ok()?;
        let mut dims = settled.dims.clone();
        *dims.last_mut()? = [out; PROBES];
        let inputs = vec![In::Source(settled.base)];
        let made = self.make(OpKind::Linear(linear.clone()), inputs, dims.clone());
        let mut axes = settled.axes.clone();
        let whole = View::whole(made, dims);
        *axes.last_mut()? = whole.axes.last()?.clone();
        Some(Expr::Leaf(View { axes, ..whole }))
    }

    /// The positions of the ids, once.
    pub(super) fn positions(&mut self) -> Option<Source> {
        if let Some(known) = self.positions {
            return Some(known);
        }
        let inputs = &self.graph.body.inputs;
        let is_ids = |name: &str| {
            name.contains("ids") && !name.contains("position") && !name.contains("type")
        };
        let named = |id| self.graph.value(id).map_or("", |v| v.name.as_str());
        let whole = |id| {
            self.facts
                .side(Operand::Value(id))
                .is_some_and(|t| matches!(&t, [a, _] if a.rank() == 2))
        };
        let ids = inputs.iter().copied().filter(|&id| whole(id));
        let ids = ids.clone().find(|&id| is_ids(named(id)))?;
        let dims = self.facts.sizes(Operand::Value(ids))?;
        let made = self.native(Native::Positions, vec![In::Source(Source::Old(ids))], dims);
        self.positions = Some(made);
        Some(made)
    }

    /// Length of the past at a probe.
    pub(super) fn past(&self, probe: usize) -> usize {
        let inputs = self.graph.body.inputs.iter();
        let past = inputs.filter_map(|&id| {
            let name = &self.graph.value(id)?.name;
            let sizes = self.facts.sizes(Operand::Value(id))?;
            let at = if sizes.len() == 4 { 2 } else { 1 };
            super::sample::is_past(name).then(|| sizes.get(at)?.get(probe).copied())?
        });
        past.min().unwrap_or(0)
    }

    /// What positions are offset by, where these numbers are positions: `[B,S]`, `[1,S]`, `[S]`.
    pub(super) fn offset(&self, ids: &[Tensor; PROBES]) -> Option<i64> {
        let mut found = None;
        for (probe, ids) in ids.iter().enumerate() {
            let length = *ids.shape.last()?;
            let past = self.past(probe) as f64;
            let offset = *ids.values()?.first()? - past;
            let counts = |(at, &v): (usize, &f64)| v == (at % length.max(1)) as f64 + past + offset;
            let all = ids.values()?.iter().enumerate().all(counts);
            if !all || found.is_some_and(|f| f != offset) {
                return None;
            }
            found = Some(offset);
        }
        found.map(|offset| offset as i64).filter(|o| *o >= 0)
    }

    pub(super) fn embedding(&mut self, op: &Op, embedding: &Embedding) -> Option<Expr> {
        let input = *op.inputs.first()?;
        if let Operand::Value(id) = input
            && self.graph.body.inputs.contains(&id)
        {
            return None;
        }
        let ids = self.facts.side(input)?;
        if self.facts.is_doubtful(input) {
            self.near("positions that may change in longer sequences", "");
            return None;
        }
        if let Some(made) = self.of_input(op, embedding, &ids) {
            return Some(made);
        }
        let constant = self.facts.constant(input).and_then(|t| t.number());
        let equal = |t: &Tensor| {
            t.values()
                .is_some_and(|v| v.iter().all(|x| v.first() == Some(x)))
        };
        let first = |t: &Tensor| t.values().and_then(|v| v.first().copied());
        let [a, b] = &ids;
        if constant.is_some() || (equal(a) && equal(b) && first(a) == first(b)) {
            let row = first(a).filter(|r| *r >= 0.0)?;
            return Some(Expr::Side(Operand::Weight(
                self.row(embedding, row as usize)?,
            )));
        }
        let [[_, s0], [_, s1]] = [a, b].map(|t| {
            let length = t.shape.last().copied().unwrap_or(0);
            [t.shape.first().copied().unwrap_or(0), length]
        });
        let offset = self.offset(&ids)?;
        let matrix = match offset {
            0 => embedding.matrix.clone(),
            offset => self.rows_from(&embedding.matrix, usize::try_from(offset).ok()?)?,
        };
        let positions = self.positions()?;
        let width = usize::try_from(matrix.in_features).ok()?;
        let mut dims = self.made_dims(positions)?;
        if dims.last() != Some(&[s0, s1]) {
            return None;
        }
        dims.push([width; PROBES]);
        let kind = OpKind::Embedding(Embedding { matrix });
        let made = self.make(kind, vec![In::Source(positions)], dims.clone());
        if let Source::New(at) = made
            && let Some(made) = self.made.get_mut(at)
        {
            made.uniform = true;
        }
        let whole = View::whole(made, dims);
        let shape = self.facts.sizes(input)?;
        if shape.len() == 2 && shape.first() == whole.dims.first() {
            return Some(Expr::Leaf(whole));
        }
        // One row stands for the whole batch.
        let mut axes = whole.axes.clone();
        match shape.len() {
            1 => {
                axes.remove(0);
            }
            _ => *axes.first_mut()? = tidy(&[]),
        }
        Some(Expr::Leaf(View { axes, ..whole }))
    }

    /// An embedding of an input that was only reshaped on the way.
    fn of_input(&mut self, op: &Op, embedding: &Embedding, ids: &[Tensor; PROBES]) -> Option<Expr> {
        let same = |&id: &crate::ir::ValueId| {
            let own = self.facts.side(Operand::Value(id));
            own.is_some_and(|own| {
                own.iter()
                    .zip(ids)
                    .all(|(a, b)| a.shape == b.shape && a.data == b.data)
            })
        };
        let id = *self.graph.body.inputs.iter().find(|id| same(id))?;
        let dims = self.facts.sizes(Operand::Value((*op.results.first()?)?))?;
        let kind = OpKind::Embedding(embedding.clone());
        let made = self.make(kind, vec![In::Source(Source::Old(id))], dims.clone());
        Some(Expr::Leaf(View::whole(made, dims)))
    }

    pub(super) fn made_dims(&self, source: Source) -> Option<Vec<Size>> {
        match source {
            Source::New(at) => Some(self.made.get(at)?.dims.clone()),
            Source::Old(id) => self.facts.sizes(Operand::Value(id)),
        }
    }

    /// One row of a table as a weight of its own.
    fn row(&mut self, embedding: &Embedding, row: usize) -> Option<WeightId> {
        let view = embedding.matrix.dense_view()?.clone();
        if let Some(&known) = self.rows.get(&(view.weight, row)) {
            return Some(known);
        }
        let cut = self.cut_rows(&embedding.matrix, row, 1)?;
        let name = self.fresh("row");
        let dims = vec![embedding.matrix.in_features];
        let id = self.patch.add_weight(Weight { name, dims, ..cut });
        self.facts.add(
            id,
            vec![usize::try_from(embedding.matrix.in_features).ok()?],
        );
        self.rows.insert((view.weight, row), id);
        Some(id)
    }

    /// A table without its first rows.
    fn rows_from(&mut self, matrix: &Matrix, first: usize) -> Option<Matrix> {
        let left = matrix
            .out_features
            .checked_sub(first as u64)
            .filter(|n| *n > 0)?;
        let cut = self.cut_rows(matrix, first, usize::try_from(left).ok()?)?;
        let name = self.fresh("from");
        let dims = vec![left, matrix.in_features];
        let weight = self.patch.add_weight(Weight { name, dims, ..cut });
        Some(Matrix::dense(
            left,
            matrix.in_features,
            WeightView {
                weight,
                index: None,
                transposed: false,
            },
        ))
    }

    /// Rows of a stored table, by reference.
    fn cut_rows(&self, matrix: &Matrix, first: usize, rows: usize) -> Option<Weight> {
        let [crate::ir::Term::Dense(view)] = matrix.terms.as_slice() else {
            return None;
        };
        let weight = self.module.weight(view.weight)?;
        if view.transposed
            || view.index.is_some()
            || first.checked_add(rows)? as u64 > matrix.out_features
        {
            return None;
        }
        let row = weight.dtype.bytes_for(matrix.in_features)?;
        let skip = row.checked_mul(first as u64)?;
        let size = row.checked_mul(rows as u64)?;
        let storage = match &weight.storage {
            Storage::File {
                path,
                offset,
                encoding: crate::ir::Encoding::Raw,
                ..
            } => Storage::File {
                path: path.clone(),
                offset: offset.checked_add(skip)?,
                len: size,
                encoding: crate::ir::Encoding::Raw,
            },
            Storage::Inline(bytes) => {
                let from = usize::try_from(skip).ok()?;
                let to = from.checked_add(usize::try_from(size).ok()?)?;
                Storage::Inline(bytes.get(from..to)?.to_vec())
            }
            _ => return None,
        };
        let mut meta = Attrs::new();
        meta.set("rows_of", Attr::str(&weight.name));
        Some(Weight {
            name: weight.name.clone(),
            dtype: weight.dtype,
            dims: Vec::new(),
            storage,
            sha256: None,
            meta,
        })
    }
}
