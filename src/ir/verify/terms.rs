//! Invariant 4: terms have the shape of their matrix.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::Verifier;
use crate::ir::{
    ColumnsTerm, CustomTerm, FactorRef, LowRankTerm, Matrix, QuantTerm, Rotation, SparseTerm, Term,
    TrellisTerm, WeightId, WeightView, is_custom_kind, is_word,
};
use crate::numeric::{Block, FactorFormat, Group, Side};
use crate::weights::DType;

impl Verifier<'_> {
    pub(super) fn matrix(&mut self, matrix: &Matrix, place: &str) {
        let (out, inp) = (matrix.out_features, matrix.in_features);
        if out == 0 || inp == 0 || out.checked_mul(inp).is_none() {
            return self.report(place, format!("a matrix of {out} × {inp}"));
        }
        let dense = |t: &&Term| matches!(t, Term::Dense(_));
        if matrix.terms.iter().filter(dense).count() > 1 {
            self.report(place, "more than one dense term");
        }
        for term in &matrix.terms {
            let missing = term
                .weights()
                .into_iter()
                .find(|w| self.module.weight(*w).is_none());
            match (missing, term) {
                (Some(w), _) => self.report(
                    place,
                    format!("{} names weight {w}, which is not there", term.name()),
                ),
                (None, Term::Dense(view)) => self.dense(matrix, view, place),
                (None, Term::Quant(q)) => self.quant(matrix, q, place),
                (None, Term::Trellis(t)) => self.trellis(matrix, t, place),
                (None, Term::LowRank(l)) => self.low_rank(matrix, l, place),
                (None, Term::Sparse(s)) => self.sparse(matrix, s, place),
                (None, Term::Columns(c)) => self.columns(matrix, c, place),
                (None, Term::Custom(c)) => self.custom(c, place),
            }
        }
    }

    fn dense(&mut self, matrix: &Matrix, view: &WeightView, place: &str) {
        let Some(weight) = self.module.weight(view.weight) else {
            return;
        };
        let (mut rows, mut cols) = (matrix.out_features, matrix.in_features);
        if view.transposed {
            std::mem::swap(&mut rows, &mut cols);
        }
        // 1×1 convolutions have trailing ones; a stack has one leading dimension more.
        let mut dims = weight.dims.as_slice();
        if let Some(index) = view.index {
            match dims.split_first() {
                Some((&stack, rest)) if index < stack => dims = rest,
                _ => return self.report(place, format!("@{} has no matrix {index}", weight.name)),
            }
        }
        while dims.len() > 2 && dims.last() == Some(&1) {
            dims = &dims[..dims.len() - 1];
        }
        if dims != [rows, cols] {
            let (name, dims) = (&weight.name, &weight.dims);
            self.report(
                place,
                format!("dense(@{name}) is {dims:?}, needs [{rows}, {cols}]"),
            );
        }
        if !weight.dtype.is_float() && !weight.dtype.is_integer() {
            self.report(
                place,
                format!("dense(@{}) is {}", weight.name, weight.dtype),
            );
        }
    }

    fn expect(&mut self, place: &str, what: &str, id: WeightId, dtype: DType, count: Option<u64>) {
        let Some(weight) = self.module.weight(id) else {
            return;
        };
        if weight.dtype != dtype || weight.elements() != count || count.is_none() {
            let count = count.map_or("too many".to_string(), |n| n.to_string());
            let (have, name, dims) = (weight.dtype, &weight.name, &weight.dims);
            let text = format!("{what} @{name} is {have}{dims:?}, needs {count} × {dtype}");
            self.report(place, text);
        }
    }

    fn quant(&mut self, matrix: &Matrix, q: &QuantTerm, place: &str) {
        let (out, inp) = (matrix.out_features, matrix.in_features);
        let bits = u64::from(q.scheme.bits);
        if ![2, 3, 4, 8].contains(&bits) {
            return self.report(place, format!("no scheme of {bits} bits"));
        }
        let packed = |n: u64| n.checked_mul(bits).map(|b| b.div_ceil(8));
        let per_row = |n: Option<u64>| n.and_then(|n| n.checked_mul(out));
        self.expect(place, "codes", q.codes, DType::U8, per_row(packed(inp)));
        let (scales, zeros) = match q.group {
            Group::Column => (Some(inp), packed(inp)),
            Group::Row => (Some(out), per_row(packed(1))),
            Group::Size(0) => return self.report(place, "a group of nothing"),
            Group::Size(size) => {
                let groups = inp.div_ceil(u64::from(size));
                (per_row(Some(groups)), per_row(packed(groups)))
            }
        };
        self.expect(place, "scales", q.scales, DType::F16, scales);
        if let Some(id) = q.zeros {
            self.expect(place, "zero points", id, DType::U8, zeros);
        }
        if q.zeros.is_none() != q.scheme.symmetric {
            self.report(
                place,
                "zero points go with asymmetric schemes, and only with them",
            );
        }
        self.rotation(matrix, q.rotation, place);
    }

    fn trellis(&mut self, matrix: &Matrix, t: &TrellisTerm, place: &str) {
        let (row_blocks, blocks) = (
            matrix.out_features.div_ceil(16),
            matrix.in_features.div_ceil(16),
        );
        if !(8..=16).contains(&t.states) {
            self.report(place, format!("a trellis of 2^{} states", t.states));
        }
        self.expect(place, "scales", t.scales, DType::F16, Some(row_blocks));
        self.expect(place, "bits", t.bits, DType::U8, Some(blocks));
        let Some(codes) = self.module.weight(t.codes) else {
            return;
        };
        // How many bits each block has is in the file; it is checked when that is read.
        let bytes = codes.elements().unwrap_or(0);
        let tiles = row_blocks.checked_mul(blocks);
        let fits = |n: u64| (32 * n..=256 * n).contains(&bytes) && bytes % (32 * row_blocks) == 0;
        if codes.dtype != DType::U8 || !tiles.is_some_and(|n| n < 1 << 50 && fits(n)) {
            let (name, dims) = (&codes.name, &codes.dims);
            let text = format!(
                "codes @{name} is {}{dims:?}, no tiles of 16 × 16",
                codes.dtype
            );
            self.report(place, text);
        }
        self.rotation(matrix, t.rotation, place);
    }

    fn rotation(&mut self, matrix: &Matrix, rotation: Option<Rotation>, place: &str) {
        let Some(r) = rotation else {
            return;
        };
        if !r.fits(matrix.out_features, matrix.in_features) {
            let most = Rotation::MAX_BLOCK;
            let (out, inp) = (r.out_block, r.in_block);
            let text = format!(
                "rotate(out={out}, in={inp}): blocks are powers of two up to {most} that \
                 divide the matrix's sides"
            );
            self.report(place, text);
        }
    }

    fn low_rank(&mut self, matrix: &Matrix, term: &LowRankTerm, place: &str) {
        for b in &term.blocks {
            let end = |start: usize, len: usize| start.checked_add(len).map(|n| n as u64);
            let inside = end(b.row0, b.rows).is_some_and(|n| n <= matrix.out_features)
                && end(b.col0, b.cols).is_some_and(|n| n <= matrix.in_features);
            if !inside || b.rows == 0 || b.cols == 0 {
                self.report(
                    place,
                    format!("low_rank block {b:?} does not lie in the matrix"),
                );
                return;
            }
            if b.rank > b.rows.min(b.cols) {
                self.report(
                    place,
                    format!("low_rank block {b:?} has a rank over its sides"),
                );
                return;
            }
        }
        self.factor(place, Side::U, &term.u, &term.blocks);
        self.factor(place, Side::V, &term.v, &term.blocks);
    }

    fn factor(&mut self, place: &str, side: Side, factor: &FactorRef, blocks: &[Block]) {
        let what = match side {
            Side::U => "u",
            Side::V => "v",
        };
        let total = |per_block: &dyn Fn(u64, u64) -> Option<u64>| {
            blocks.iter().try_fold(0u64, |sum, b| {
                let (rows, cols) = side.shape(b);
                sum.checked_add(per_block(rows as u64, cols as u64)?)
            })
        };
        let coding = factor.format.scheme().zip(factor.format.group(side));
        let Some((scheme, group)) = coding else {
            let dtype = match factor.format {
                FactorFormat::F32 => DType::F32,
                _ => DType::F16,
            };
            let entries = total(&|rows, cols| rows.checked_mul(cols));
            self.expect(place, what, factor.data, dtype, entries);
            if factor.scales.is_some() {
                self.report(place, format!("{what} needs no scales"));
            }
            return;
        };
        let bits = u64::from(scheme.bits);
        let codes = total(&|rows, cols| cols.checked_mul(bits)?.div_ceil(8).checked_mul(rows));
        let scales = total(&|rows, cols| {
            let groups = match group {
                Group::Size(size) => cols.div_ceil(u64::from(size).max(1)),
                // A block of rank 0 has no codes, and so no scales.
                _ => u64::from(cols > 0),
            };
            groups.checked_mul(rows)
        });
        self.expect(place, what, factor.data, DType::U8, codes);
        match factor.scales {
            Some(id) => self.expect(place, &format!("{what} scales"), id, DType::F16, scales),
            None => self.report(place, format!("{what} is coded and has no scales")),
        }
    }

    fn sparse(&mut self, matrix: &Matrix, s: &SparseTerm, place: &str) {
        let index = if matrix.in_features > 65536 {
            DType::U32
        } else {
            DType::U16
        };
        self.expect(place, "values", s.values, DType::F16, Some(s.nnz));
        self.expect(place, "columns", s.columns, index, Some(s.nnz));
        let rows = matrix.out_features.checked_add(1);
        self.expect(place, "offsets", s.offsets, DType::U32, rows);
    }

    /// What a plugin's term means only the plugin knows; here its names are checked. Constants are those
    /// that text has.
    fn custom(&mut self, term: &CustomTerm, place: &str) {
        if !is_custom_kind(&term.kind) {
            let text = format!("`{}` is no name of a plugin's kind of term", term.kind);
            self.report(place, text);
        }
        let names: HashSet<&str> = term.tensors.iter().map(|(name, _)| name.as_str()).collect();
        if names.len() != term.tensors.len() {
            self.report(place, format!("{}: two tensors of one name", term.kind));
        }
        if let Some(name) = names.into_iter().filter(|name| !is_word(name)).min() {
            self.report(
                place,
                format!("{}: no tensor can be called `{name}`", term.kind),
            );
        }
        if !is_plain(&term.attrs, 0) {
            let text = "constants are numbers, strings, true and false, and dictionaries of them";
            self.report(place, format!("{}: {text}", term.kind));
        }
    }

    fn columns(&mut self, matrix: &Matrix, c: &ColumnsTerm, place: &str) {
        if c.count > matrix.in_features {
            self.report(
                place,
                format!("{} columns of {}", c.count, matrix.in_features),
            );
        }
        let values = c.count.checked_mul(matrix.out_features);
        self.expect(place, "columns", c.columns, DType::U32, Some(c.count));
        self.expect(place, "values", c.values, DType::F16, values);
    }
}

/// Whether text can hold the constants of a plugin's term.
fn is_plain(attrs: &Map<String, Value>, depth: usize) -> bool {
    let plain = |value: &Value| match value {
        Value::Bool(_) | Value::Number(_) | Value::String(_) => true,
        Value::Object(inner) => depth < 4 && is_plain(inner, depth + 1),
        Value::Null | Value::Array(_) => false,
    };
    attrs.values().all(plain)
}
