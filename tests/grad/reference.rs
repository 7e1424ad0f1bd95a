//! The graph in `f64`, op by op as their definitions read: what gradients are held against.

mod natives;

use std::collections::HashMap;

use hlrc::exec::kernels::low_rank::{FactorData, LowRankView, decode};
use hlrc::ir::{
    GradKind, Graph, Matrix, Module, Op, OpKind, Operand, Part, Region, Rotation, Term, ValueId,
    WeightId, WeightView,
};
use hlrc::numeric::quant::{Group, packed_len, unpack_row};
use hlrc::store::Reader;
use hlrc::train::grad::{Parameter, What};
use hlrc::weights::FileCache;
use hlrc::weights::read::decode_f32;

/// A tensor: numbers, ids among them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Array {
    pub(crate) shape: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn new(shape: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len());
        Self {
            shape: shape.to_vec(),
            data,
        }
    }

    fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    fn rows(&self) -> usize {
        self.data.len() / self.width().max(1)
    }

    fn row(&self, r: usize) -> &[f64] {
        &self.data[r * self.width()..(r + 1) * self.width()]
    }

    /// Sequences and their length.
    fn sequences(&self) -> (usize, usize) {
        let len = self.shape[self.shape.len() - 2];
        (self.rows() / len, len)
    }
}

/// A module whose parameters can be moved.
pub(crate) struct Reference<'a> {
    module: &'a Module,
    reader: Reader<'a>,
    /// Parameters in other places than stored.
    pub(crate) moved: HashMap<Parameter, Vec<f64>>,
    /// Values in other places than computed.
    pub(crate) shifted: HashMap<ValueId, Vec<f64>>,
}

impl<'a> Reference<'a> {
    pub(crate) fn new(module: &'a Module, files: &'a FileCache) -> Self {
        Self {
            module,
            reader: Reader::new(files),
            moved: HashMap::new(),
            shifted: HashMap::new(),
        }
    }

    fn bytes(&self, id: WeightId) -> Vec<u8> {
        self.reader.bytes(self.module, id).expect("a weight")
    }

    fn halves(&self, id: WeightId) -> Vec<f64> {
        let half = |b: &[u8]| f64::from(half::f16::from_le_bytes([b[0], b[1]]).to_f32());
        self.bytes(id).chunks_exact(2).map(half).collect()
    }

    fn stored(&self, id: WeightId) -> Vec<f64> {
        let weight = self.module.weight(id).expect("a weight");
        let mut values = vec![0f32; weight.elements().expect("small") as usize];
        assert!(decode_f32(weight.dtype, &self.bytes(id), &mut values));
        values.iter().map(|&x| f64::from(x)).collect()
    }

    fn at(
        &self,
        weight: WeightId,
        index: Option<u64>,
        what: What,
        or: impl FnOnce() -> Vec<f64>,
    ) -> Vec<f64> {
        let parameter = Parameter {
            weight,
            index,
            what,
        };
        self.moved.get(&parameter).cloned().unwrap_or_else(or)
    }

    fn vector(&self, id: WeightId) -> Vec<f64> {
        self.at(id, None, What::Vector, || self.stored(id))
    }

    /// The values of a parameter as they are stored.
    pub(crate) fn parameter(&self, op: &Op, p: Parameter) -> Vec<f64> {
        let What::Part(part) = p.what else {
            return self.stored(p.weight);
        };
        let matrix = op.kind.matrix().expect("a matrix");
        let term = matrix
            .terms
            .iter()
            .find(|t| Part::of(t).contains(&(part, p.weight)));
        match (part, term.expect("its term")) {
            (Part::Dense, Term::Dense(view)) => self.dense(matrix, view),
            (Part::Scales, _) => self.halves(p.weight),
            (Part::Values, _) => self.halves(p.weight),
            (Part::Zeros, Term::Quant(q)) => {
                let per_row = q.group.per_row(matrix.in_features as usize);
                self.codes(p.weight, q.scheme.bits, per_row)
            }
            (Part::Codes, term) => self.coordinates(matrix, term),
            (Part::U, term) => self.factors(matrix, term)[0].clone(),
            (Part::V, term) => self.factors(matrix, term)[1].clone(),
            _ => unreachable!("a part of another term"),
        }
    }

    fn codes(&self, id: WeightId, bits: u8, per_row: usize) -> Vec<f64> {
        let mut row = vec![0u8; per_row];
        let mut all = Vec::new();
        for packed in self.bytes(id).chunks_exact(packed_len(bits, per_row)) {
            unpack_row(bits, packed, &mut row);
            all.extend(row.iter().map(|&c| f64::from(c)));
        }
        all
    }

    fn dense(&self, matrix: &Matrix, view: &WeightView) -> Vec<f64> {
        let entries = matrix.entries() as usize;
        let skip = entries * view.index.unwrap_or(0) as usize;
        self.stored(view.weight)[skip..skip + entries].to_vec()
    }

    fn factors(&self, matrix: &Matrix, term: &Term) -> [Vec<f64>; 2] {
        let Term::LowRank(l) = term else {
            unreachable!()
        };
        let data = [self.bytes(l.u.data), self.bytes(l.v.data)];
        let scales = [l.u.scales, l.v.scales].map(|s| s.map(|id| self.bytes(id)));
        let factor = |i: usize| FactorData {
            format: [&l.u, &l.v][i].format,
            data: &data[i],
            scales: scales[i].as_deref(),
        };
        let view = LowRankView {
            rows: matrix.out_features as usize,
            cols: matrix.in_features as usize,
            blocks: &l.blocks,
            u: factor(0),
            v: factor(1),
        };
        decode(&view).map(|side| side.iter().map(|&x| f64::from(x)).collect())
    }

    /// A term's matrix in its own coordinates.
    fn coordinates(&self, matrix: &Matrix, term: &Term) -> Vec<f64> {
        let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
        let mut w = vec![0f64; rows * cols];
        match term {
            Term::Dense(view) => {
                let what = What::Part(Part::Dense);
                let stored = self.at(view.weight, view.index, what, || self.dense(matrix, view));
                for (i, x) in w.iter_mut().enumerate() {
                    let (r, c) = (i / cols, i % cols);
                    *x = if view.transposed {
                        stored[c * rows + r]
                    } else {
                        stored[i]
                    };
                }
            }
            Term::Quant(q) => {
                let part = |p| What::Part(p);
                if let Some(moved) = self.moved.get(&Parameter {
                    weight: q.codes,
                    index: None,
                    what: part(Part::Codes),
                }) {
                    return moved.clone();
                }
                let per_row = q.group.per_row(cols);
                let codes = self.codes(q.codes, q.scheme.bits, cols);
                let scales = self.at(q.scales, None, part(Part::Scales), || self.halves(q.scales));
                let zeros = q.zeros.map(|id| {
                    self.at(id, None, part(Part::Zeros), || {
                        self.codes(id, q.scheme.bits, per_row)
                    })
                });
                for (i, x) in w.iter_mut().enumerate() {
                    let (r, c) = (i / cols, i % cols);
                    let at = match q.group {
                        Group::Column => c,
                        Group::Row => r,
                        Group::Size(n) => r * per_row + c / n as usize,
                    };
                    let middle = f64::from(1u32 << (q.scheme.bits - 1));
                    let zero = zeros.as_ref().map_or(middle, |z| z[at]);
                    *x = (codes[i] - zero) * scales[at];
                }
            }
            Term::Trellis(t) => {
                if let Some(moved) = self.moved.get(&Parameter {
                    weight: t.codes,
                    index: None,
                    what: What::Part(Part::Codes),
                }) {
                    return moved.clone();
                }
                let data = self.reader.term(self.module, matrix, term).expect("a term");
                let mut plain = vec![0f32; rows * cols];
                let added = match data {
                    hlrc::pass::terms::TermData::Rotated(_, inner) => {
                        inner.add_rows(0..rows, &mut plain)
                    }
                    other => other.add_rows(0..rows, &mut plain),
                };
                added.expect("a trellis decodes");
                let before = self.halves(t.scales);
                let scales = self.at(t.scales, None, What::Part(Part::Scales), || before.clone());
                for (i, x) in w.iter_mut().enumerate() {
                    let stripe = i / cols / 16;
                    *x = f64::from(plain[i]) / before[stripe] * scales[stripe];
                }
            }
            Term::LowRank(l) => {
                let [u, v] = self.factors(matrix, term);
                let u = self.at(l.u.data, None, What::Part(Part::U), || u);
                let v = self.at(l.v.data, None, What::Part(Part::V), || v);
                let (mut u_at, mut v_at) = (0, 0);
                for b in &l.blocks {
                    for r in 0..b.rows {
                        for c in 0..b.cols {
                            let dot = (0..b.rank)
                                .map(|k| u[u_at + r * b.rank + k] * v[v_at + k * b.cols + c]);
                            w[(b.row0 + r) * cols + b.col0 + c] += dot.sum::<f64>();
                        }
                    }
                    u_at += b.rows * b.rank;
                    v_at += b.rank * b.cols;
                }
            }
            Term::Sparse(s) => {
                let values = self.at(s.values, None, What::Part(Part::Values), || {
                    self.halves(s.values)
                });
                let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("four")) as usize;
                let offsets: Vec<usize> = self.bytes(s.offsets).chunks_exact(4).map(word).collect();
                let columns = self.bytes(s.columns);
                for r in 0..rows {
                    for e in offsets[r]..offsets[r + 1] {
                        let c = u16::from_le_bytes([columns[2 * e], columns[2 * e + 1]]) as usize;
                        w[r * cols + c] += values[e];
                    }
                }
            }
            Term::Columns(t) => {
                let values = self.at(t.values, None, What::Part(Part::Values), || {
                    self.halves(t.values)
                });
                let word = |b: &[u8]| u32::from_le_bytes(b.try_into().expect("four")) as usize;
                let columns: Vec<usize> = self.bytes(t.columns).chunks_exact(4).map(word).collect();
                for r in 0..rows {
                    for (k, c) in columns.iter().enumerate() {
                        w[r * cols + c] += values[r * columns.len() + k];
                    }
                }
            }
            Term::Custom(_) => unreachable!("no module here has terms of plugins"),
        }
        w
    }

    /// The whole matrix.
    fn matrix(&self, matrix: &Matrix) -> Vec<f64> {
        let (rows, cols) = (matrix.out_features as usize, matrix.in_features as usize);
        let mut sum = vec![0f64; rows * cols];
        for term in &matrix.terms {
            let mut w = self.coordinates(matrix, term);
            if let Some(rotation) = term.rotation() {
                w = unrotated(&w, rows, cols, rotation);
            }
            sum.iter_mut().zip(w).for_each(|(s, x)| *s += x);
        }
        sum
    }

    /// Runs the first graph; gives its losses' sum.
    pub(crate) fn loss(&self, inputs: &[(String, Array)]) -> f64 {
        let graph = &self.module.graphs[0];
        let mut values: HashMap<ValueId, Array> = HashMap::new();
        for &id in &graph.body.inputs {
            let name = &graph.value(id).expect("a value").name;
            let given = inputs.iter().find(|(n, _)| n == name);
            let mut given = given.unwrap_or_else(|| panic!("{name}")).1.clone();
            if let Some(moved) = self.shifted.get(&id) {
                given.data = moved.clone();
            }
            values.insert(id, given);
        }
        self.region(graph, &graph.body, &mut values);
        let outputs = graph.body.outputs.iter();
        outputs.map(|o| self.operand(o, &values).data[0]).sum()
    }

    fn region(&self, graph: &Graph, region: &Region, values: &mut HashMap<ValueId, Array>) {
        for op in region.ops.iter().filter_map(|&id| graph.op(id)) {
            let made = self.op(graph, op, values);
            values.insert(op.results[0].expect("a result"), made);
        }
    }

    fn operand(&self, operand: &Operand, values: &HashMap<ValueId, Array>) -> Array {
        match operand {
            Operand::Value(v) => values[v].clone(),
            Operand::Weight(id) => {
                let dims = &self.module.weight(*id).expect("a weight").dims;
                let dims: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
                Array::new(&dims, self.vector(*id))
            }
            Operand::None => Array::default(),
        }
    }

    fn op(&self, graph: &Graph, op: &Op, values: &mut HashMap<ValueId, Array>) -> Array {
        let x = self.operand(&op.inputs[0], values);
        let second = op.inputs.get(1).map(|o| self.operand(o, values));
        let third = op.inputs.get(2).map(|o| self.operand(o, values));
        let with = |shape: &[usize], data| Array::new(shape, data);
        match &op.kind {
            OpKind::Linear(linear) => {
                let (rows, cols) = (
                    linear.matrix.out_features as usize,
                    linear.matrix.in_features as usize,
                );
                let w = self.matrix(&linear.matrix);
                let bias = linear.bias.map(|id| self.vector(id));
                let mut shape = x.shape.clone();
                *shape.last_mut().expect("a width") = rows;
                let mut out = Vec::new();
                for t in 0..x.rows() {
                    for o in 0..rows {
                        let dot: f64 = x
                            .row(t)
                            .iter()
                            .zip(&w[o * cols..])
                            .map(|(a, b)| a * b)
                            .sum();
                        out.push(
                            dot * f64::from(linear.scale) + bias.as_ref().map_or(0.0, |b| b[o]),
                        );
                    }
                }
                with(&shape, out)
            }
            OpKind::Embedding(e) => {
                let w = self.matrix(&e.matrix);
                let width = e.matrix.in_features as usize;
                let row = |id: &f64| w[*id as usize * width..][..width].to_vec();
                let shape = [x.shape.as_slice(), &[width]].concat();
                with(&shape, x.data.iter().flat_map(row).collect())
            }
            OpKind::Moe(moe) => {
                let logits = second.expect("logits");
                let mut out = vec![0f64; x.data.len()];
                for t in 0..x.rows() {
                    let p = natives::softmax(logits.row(t));
                    let mut order: Vec<usize> = (0..p.len()).collect();
                    order.sort_by(|&a, &b| p[b].total_cmp(&p[a]).then(a.cmp(&b)));
                    order.truncate(moe.top_k as usize);
                    let kept: f64 = order.iter().map(|&e| p[e]).sum();
                    for &e in &order {
                        let region = &moe.experts[e];
                        values.insert(region.inputs[0], with(&[1, x.width()], x.row(t).to_vec()));
                        self.region(graph, region, values);
                        let y = self.operand(&region.outputs[0], values);
                        let weight = if moe.normalize { p[e] / kept } else { p[e] };
                        let at = t * x.width();
                        out[at..at + x.width()]
                            .iter_mut()
                            .zip(&y.data)
                            .for_each(|(o, y)| *o += weight * y);
                    }
                }
                with(&x.shape, out)
            }
            OpKind::Native(native) => self.native(native, &x, second, third, op, values),
            OpKind::Grad(grad) => {
                let GradKind::Op(training) = &grad.kind else {
                    unreachable!()
                };
                let held = second.expect("what it is held against");
                let last = self.operand(op.inputs.last().expect("weights"), values);
                let tokens = (0..x.rows())
                    .map(|t| last.data[t] * natives::loss(training, &x, &held, third.as_ref(), t));
                with(&[], vec![tokens.sum()])
            }
            OpKind::Onnx(_) => unreachable!(),
        }
    }
}

/// `Wᵀ`'s coordinates back: `R_outᵀ W R_in` with both rotations written out.
fn unrotated(w: &[f64], rows: usize, cols: usize, rotation: Rotation) -> Vec<f64> {
    let entry = |side: hlrc::numeric::hadamard::Rotation, n: usize| -> Vec<f64> {
        let signs = side.signs(n);
        let mut r = vec![0f64; n * n];
        for i in 0..n {
            for j in 0..n {
                if side.block <= 1 {
                    r[i * n + j] = if i == j { 1.0 } else { 0.0 };
                } else if i / side.block == j / side.block {
                    let (a, b) = (i % side.block, j % side.block);
                    let sign = if (a & b).count_ones() % 2 == 1 {
                        -1.0
                    } else {
                        1.0
                    };
                    r[i * n + j] = sign / (side.block as f64).sqrt() * f64::from(signs[j]);
                }
            }
        }
        r
    };
    let (out, inp) = (
        entry(rotation.out_side(), rows),
        entry(rotation.in_side(), cols),
    );
    let mut half = vec![0f64; rows * cols];
    for r in 0..rows {
        for c in 0..cols {
            half[r * cols + c] = (0..cols).map(|k| w[r * cols + k] * inp[k * cols + c]).sum();
        }
    }
    let value = |i: usize| {
        (0..rows)
            .map(|k| out[k * rows + i / cols] * half[k * cols + i % cols])
            .sum()
    };
    (0..rows * cols).map(value).collect()
}
