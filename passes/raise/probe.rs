//! Two sample sizes at which a graph's shapes, positions and masks are worked out.
//!
//! Sizes that are constants are the same at both probes; batch, length and length of the past are
//! not, so that a dimension's two sizes tell what it is. Values that do not depend on activations
//! have numbers besides: what a mask or a rotation is shows in them, however it is spelled.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use super::eval;
use super::sample::{PROBES, Samples, Size, is_past, is_tokens};
use super::tensor::{MAX_ELEMENTS, MAX_RANK, Tensor, count};
use crate::ir::{
    Attr, Dim, Graph, Layout, Module, Native, Op, OpId, OpKind, Operand, Type, ValueId, WeightId,
};
use crate::store::Reader;
use crate::weights::{DType, FileCache};

/// Numbers that are followed of all values together: 1 GiB of them.
const MAX_NUMBERS: usize = 1 << 27;

/// What is known of every value.
pub(super) struct Facts<'a> {
    module: &'a Module,
    files: FileCache,
    values: HashMap<ValueId, [Option<Tensor>; PROBES]>,
    weights: RefCell<HashMap<WeightId, Option<Tensor>>>,
    /// Inputs of token ids, and what is these ids in another shape: their numbers stand for no others.
    tokens: HashSet<ValueId>,
    /// Numbers that may still be followed.
    left: usize,
    /// No padding, and positions count up.
    whole: bool,
    samples: Samples,
    /// Values that may be others in longer sequences, whatever the probes say.
    doubtful: HashSet<ValueId>,
}

impl<'a> Facts<'a> {
    /// Works out everything about graph `@main`.
    pub(super) fn new(module: &'a Module, graph: &Graph, whole: bool, samples: Samples) -> Self {
        let mut facts = Self {
            whole,
            samples,
            doubtful: HashSet::new(),
            module,
            files: FileCache::new(),
            values: HashMap::new(),
            weights: RefCell::new(HashMap::new()),
            tokens: HashSet::new(),
            left: MAX_NUMBERS,
        };
        facts.inputs(graph);
        for &id in &graph.body.ops {
            if let Some(op) = graph.op(id) {
                facts.op(op);
            }
        }
        facts
    }

    /// The same once more.
    pub(super) fn copy(&self) -> Self {
        Self {
            whole: self.whole,
            samples: self.samples,
            doubtful: self.doubtful.clone(),
            module: self.module,
            files: FileCache::new(),
            values: self.values.clone(),
            weights: self.weights.clone(),
            tokens: self.tokens.clone(),
            left: self.left,
        }
    }

    /// The samples that the probes are of.
    pub(super) fn samples(&self) -> &Samples {
        &self.samples
    }

    /// Whether as much is known of every value as in `other`.
    pub(super) fn knows(&self, other: &Self) -> bool {
        other.values.iter().all(|(id, theirs)| {
            let own = self.values.get(id);
            let own = own.map_or(&[][..], |own| own.as_slice());
            theirs.iter().enumerate().all(|(probe, theirs)| {
                let own = own.get(probe).and_then(Option::as_ref);
                match (theirs, own) {
                    (None, _) => true,
                    (Some(_), None) => false,
                    (Some(a), Some(b)) => {
                        a.rank() == b.rank() && (a.data.is_none() || b.data.is_some())
                    }
                }
            })
        })
    }

    /// Doubts values, besides what was doubted before.
    pub(super) fn doubt(&mut self, values: &HashSet<ValueId>) {
        self.doubtful.extend(values);
    }

    /// Whether an operand may be another in longer sequences.
    pub(super) fn is_doubtful(&self, operand: Operand) -> bool {
        matches!(operand, Operand::Value(id) if self.doubtful.contains(&id))
    }

    /// The same where these constants were `to`, whatever their sign; only these ops are gone through
    /// again.
    pub(super) fn swapped(
        &self,
        graph: &Graph,
        ops: &BTreeMap<usize, OpId>,
        (constants, to): (&HashSet<Operand>, f64),
    ) -> Self {
        let mut facts = self.copy();
        let swap = |tensor: Tensor| {
            let number = |v: &f64| to * v.signum();
            let data = tensor
                .values()
                .map(|v| Rc::new(v.iter().map(number).collect()));
            Tensor { data, ..tensor }
        };
        for &constant in constants {
            if let Operand::Weight(id) = constant {
                let tensor = self.weight(id).map(swap);
                facts.weights.borrow_mut().insert(id, tensor);
            }
        }
        for op in ops.values().filter_map(|&id| graph.op(id)) {
            facts.op(op);
            for &value in op.results.iter().flatten() {
                if !constants.contains(&Operand::Value(value)) {
                    continue;
                }
                for probe in 0..PROBES {
                    let tensor = facts.get(Operand::Value(value), probe).map(swap);
                    facts.set(value, probe, tensor);
                }
            }
        }
        facts
    }

    /// Whether an operand is token ids.
    pub(super) fn is_tokens(&self, operand: Operand) -> bool {
        matches!(operand, Operand::Value(id) if self.tokens.contains(&id))
    }

    /// What is known of an operand at a probe.
    pub(super) fn get(&self, operand: Operand, probe: usize) -> Option<Tensor> {
        match operand {
            Operand::None => None,
            Operand::Weight(id) => self.weight(id),
            Operand::Value(id) => self.values.get(&id)?.get(probe)?.clone(),
        }
    }

    /// What is known of an operand at both probes.
    pub(super) fn both(&self, operand: Operand) -> Option<[Tensor; PROBES]> {
        Some([self.get(operand, 0)?, self.get(operand, 1)?])
    }

    /// The sizes of an operand's dimensions.
    pub(super) fn sizes(&self, operand: Operand) -> Option<Vec<Size>> {
        let [a, b] = self.both(operand)?;
        let same = a.rank() == b.rank();
        same.then(|| {
            a.shape
                .iter()
                .zip(&b.shape)
                .map(|(&x, &y)| [x, y])
                .collect()
        })
    }

    /// The numbers of an operand at both probes, where they don't depend on activations.
    pub(super) fn side(&self, operand: Operand) -> Option<[Tensor; PROBES]> {
        let both = self.both(operand)?;
        both.iter().all(|t| t.data.is_some()).then_some(both)
    }

    /// The number that an operand is, whatever the sizes.
    pub(super) fn number(&self, operand: Operand) -> Option<f64> {
        let [a, b] = self.side(operand).filter(|_| !self.is_doubtful(operand))?;
        let (a, b) = (a.number()?, b.number()?);
        (a == b).then_some(a)
    }

    /// The tensor that an operand is, whatever the sizes.
    pub(super) fn constant(&self, operand: Operand) -> Option<Tensor> {
        let [a, b] = self.side(operand).filter(|_| !self.is_doubtful(operand))?;
        (a.shape == b.shape && a.data == b.data).then_some(a)
    }

    fn weight(&self, id: WeightId) -> Option<Tensor> {
        if let Some(known) = self.weights.borrow().get(&id) {
            return known.clone();
        }
        let tensor = self.read(id);
        self.weights.borrow_mut().insert(id, tensor.clone());
        tensor
    }

    /// Makes a weight known that a patch adds.
    pub(super) fn add(&self, id: WeightId, shape: Vec<usize>) {
        let tensor = Tensor::shaped(DType::F32, shape);
        self.weights.borrow_mut().insert(id, Some(tensor));
    }

    /// A weight's shape, and its numbers where they are few, read anew.
    pub(super) fn read(&self, id: WeightId) -> Option<Tensor> {
        let weight = self.module.weight(id)?;
        let dims = weight.dims.iter().map(|&d| usize::try_from(d).ok());
        let shape: Vec<usize> = dims.collect::<Option<_>>()?;
        let total = count(&shape)?;
        let mut tensor = Tensor::shaped(weight.dtype, shape);
        if total <= MAX_ELEMENTS
            && let Ok(bytes) = Reader::new(&self.files).bytes(self.module, id)
        {
            let data = decode(weight.dtype, &bytes).filter(|data| data.len() == total);
            tensor.data = data.map(Rc::new);
        }
        Some(tensor)
    }

    fn set(&mut self, value: ValueId, probe: usize, tensor: Option<Tensor>) {
        let mut tensor = tensor.filter(|t| t.rank() <= MAX_RANK && count(&t.shape).is_some());
        // Moved numbers are shared; others are counted.
        if let Some(t) = &mut tensor
            && let Some(data) = t.data.as_ref().filter(|data| Rc::strong_count(data) == 1)
        {
            match self.left.checked_sub(data.len()) {
                Some(left) => self.left = left,
                None => t.data = None,
            }
        }
        let slots = self.values.entry(value).or_default();
        if let Some(slot) = slots.get_mut(probe) {
            *slot = tensor;
        }
    }

    fn inputs(&mut self, graph: &Graph) {
        let named = |id: ValueId| graph.value(id).map_or("", |v| v.name.as_str());
        let inputs = &graph.body.inputs;
        let cached = inputs.iter().any(|&id| is_past(named(id)));
        let samples = self.samples;
        for (probe, sample) in samples.iter().enumerate() {
            let mut bound: HashMap<String, usize> = HashMap::new();
            for &id in inputs {
                let Some(Type::Tensor(ty)) = graph.value(id).and_then(|v| v.ty.as_ref()) else {
                    continue;
                };
                let Some(dims) = &ty.shape else { continue };
                let rank = dims.len();
                let mut shape = Vec::with_capacity(rank);
                for (axis, dim) in dims.iter().enumerate() {
                    let size = match dim {
                        Dim::Known(n) => usize::try_from(*n).unwrap_or(0),
                        Dim::Unknown => sample.size(named(id), axis, rank, cached),
                        Dim::Symbol(name) => *bound
                            .entry(name.clone())
                            .or_insert_with(|| sample.size(named(id), axis, rank, cached)),
                    };
                    shape.push(size);
                }
                let integral = ty.dtype.is_integer() || ty.dtype == DType::Bool;
                let total = count(&shape).filter(|n| *n <= MAX_ELEMENTS);
                let tensor = match total {
                    Some(total) if integral => {
                        let probe = (!self.whole).then_some(probe);
                        let past = if cached { sample.past } else { 0 };
                        if is_tokens(named(id)) {
                            self.tokens.insert(id);
                        }
                        let data = sample.numbers(named(id), probe, past, (total, &shape));
                        Tensor::new(ty.dtype, shape, data)
                    }
                    _ => Tensor::shaped(ty.dtype, shape),
                };
                self.set(id, probe, Some(tensor));
            }
        }
    }

    fn op(&mut self, op: &Op) {
        let name = match &op.kind {
            OpKind::Onnx(onnx) => onnx.op_type.as_str(),
            _ => "",
        };
        let of_tokens = op.inputs.iter().any(|&input| self.is_tokens(input));
        let of_tokens = of_tokens && !matches!(name, "Shape" | "Size");
        for probe in 0..PROBES {
            let mut results = self.results(op, probe);
            for tensor in results.iter_mut().flatten().filter(|_| of_tokens) {
                // Which ids these are is for the user to say: what follows from it is not known.
                match (name, tensor.dtype.is_integer()) {
                    (
                        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Identity" | "Cast",
                        true,
                    ) => {
                        self.tokens.extend(op.results.iter().flatten());
                    }
                    _ => tensor.data = None,
                }
            }
            for (&result, tensor) in op.results.iter().zip(results) {
                if let Some(result) = result {
                    self.set(result, probe, tensor);
                }
            }
        }
    }

    fn results(&self, op: &Op, probe: usize) -> Vec<Option<Tensor>> {
        let first = || self.get(*op.inputs.first()?, probe);
        match &op.kind {
            OpKind::Onnx(onnx) if onnx.op_type == "Constant" => {
                vec![self.constant_node(&onnx.attrs)]
            }
            OpKind::Onnx(onnx) => {
                let inputs: Vec<_> = op.inputs.iter().map(|&i| self.get(i, probe)).collect();
                let inputs = match (onnx.op_type.as_str(), onnx.attrs.get("value")) {
                    ("ConstantOfShape", Some(Attr::Weight(id))) => {
                        let shape = inputs.first().cloned().flatten();
                        vec![shape, self.weight(*id)]
                    }
                    _ => inputs,
                };
                eval::eval(onnx, &inputs, op.results.len())
            }
            OpKind::Linear(linear) if linear.layout == Layout::Rows => {
                vec![first().and_then(|x| {
                    let mut shape = x.shape.clone();
                    *shape.last_mut()? = usize::try_from(linear.matrix.out_features).ok()?;
                    Some(Tensor::shaped(x.dtype, shape))
                })]
            }
            OpKind::Embedding(embedding) => {
                vec![first().and_then(|x| {
                    let mut shape = x.shape.clone();
                    shape.push(usize::try_from(embedding.matrix.in_features).ok()?);
                    Some(Tensor::shaped(DType::F32, shape))
                })]
            }
            OpKind::Native(native) => vec![self.native(native, op, probe)],
            _ => Vec::new(),
        }
    }

    /// Shapes of native ops that are there already.
    fn native(&self, native: &Native, op: &Op, probe: usize) -> Option<Tensor> {
        let mut x = self.get(*op.inputs.first()?, probe)?;
        x.data = None;
        match native {
            Native::Slice { width, .. } => {
                *x.shape.last_mut()? = usize::try_from(*width).ok()?;
            }
            Native::FirstToken => {
                x.shape.remove((x.rank() > 1).then_some(1)?);
            }
            _ => {}
        }
        Some(x)
    }

    fn constant_node(&self, attrs: &crate::ir::Attrs) -> Option<Tensor> {
        let floats = |list: &[crate::ir::Float]| list.iter().map(|f| f64::from(f.0)).collect();
        attrs
            .iter()
            .find_map(|(name, attr)| match (name.as_str(), attr) {
                ("value", Attr::Weight(id)) => self.weight(*id),
                ("value_int", Attr::Int(i)) => {
                    Some(Tensor::new(DType::I64, vec![], vec![*i as f64]))
                }
                ("value_float", Attr::Float(f)) => {
                    Some(Tensor::new(DType::F32, vec![], vec![f64::from(f.0)]))
                }
                ("value_ints", Attr::Ints(v)) => {
                    Some(Tensor::ints(v.iter().map(|&i| i as f64).collect()))
                }
                ("value_floats", Attr::Floats(v)) => {
                    Some(Tensor::new(DType::F32, vec![v.len()], floats(v)))
                }
                _ => None,
            })
    }
}

/// Little-endian elements as numbers.
fn decode(dtype: DType, bytes: &[u8]) -> Option<Vec<f64>> {
    fn each<const N: usize>(bytes: &[u8], number: fn([u8; N]) -> f64) -> Vec<f64> {
        let chunk = |c: &[u8]| c.try_into().map(number).unwrap_or_default();
        bytes.chunks_exact(N).map(chunk).collect()
    }
    Some(match dtype {
        DType::F64 => each(bytes, f64::from_le_bytes),
        DType::F32 => each(bytes, |b| f64::from(f32::from_le_bytes(b))),
        DType::F16 => each(bytes, |b| half::f16::from_le_bytes(b).to_f64()),
        DType::BF16 => each(bytes, |b| half::bf16::from_le_bytes(b).to_f64()),
        DType::I64 => each(bytes, |b| i64::from_le_bytes(b) as f64),
        DType::I32 => each(bytes, |b| f64::from(i32::from_le_bytes(b))),
        DType::I16 => each(bytes, |b| f64::from(i16::from_le_bytes(b))),
        DType::I8 => each(bytes, |b| f64::from(i8::from_le_bytes(b))),
        DType::U8 | DType::Bool => each(bytes, |[b]: [u8; 1]| f64::from(b)),
        DType::U16 => each(bytes, |b| f64::from(u16::from_le_bytes(b))),
        DType::U32 => each(bytes, |b| f64::from(u32::from_le_bytes(b))),
        DType::U64 => each(bytes, |b| u64::from_le_bytes(b) as f64),
        _ => return None,
    })
}
