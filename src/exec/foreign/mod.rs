//! Runs of ONNX ops that have no kernel here: each becomes a small model that tract runs.
//!
//! tract needs concrete shapes, so a run is compiled once for each set of input shapes, under a
//! time limit. Built without the feature `tract`, such ops are refused by name.

#[cfg(feature = "tract")]
mod tract;

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::AtomicBool;
#[cfg(feature = "tract")]
use std::time::{Duration, Instant};

use super::{ExecError, Tensor};
use crate::ir::shapes::Shapes;
use crate::ir::{
    Graph, Module, OpId, OpKind, Operand, Region, TensorType, Type, ValueId, WeightId,
};
use crate::store::Reader;
use crate::weights::DType;

/// Consecutive ONNX ops that run as one.
pub(super) struct Foreign {
    inputs: Vec<ValueId>,
    outputs: Vec<ValueId>,
    /// The first op of which a position's result may depend on other positions.
    mixing: Option<String>,
    #[cfg(feature = "tract")]
    runner: tract::Runner,
}

/// Kinds of ops that a message lists.
const KINDS: usize = 3;

/// What a run of ops is called in messages.
#[derive(Clone, Debug)]
struct Label {
    /// The kinds of ops, each once.
    ops: String,
    /// The first op's name.
    name: String,
}

impl Label {
    fn unsupported(&self, problem: String) -> ExecError {
        ExecError::Unsupported {
            op: self.ops.clone(),
            name: self.name.clone(),
            problem,
        }
    }
}

impl Foreign {
    /// Takes a run of ONNX ops of a region.
    ///
    /// # Errors
    /// Without tract: the ops are named. With it: the op that can't be written or read as a model of its
    /// own; the run, where no op alone is refused.
    pub(super) fn new(
        (module, graph, region): (&Module, &Graph, &Region),
        ops: &[OpId],
        shapes: &Shapes,
        reader: &Reader,
    ) -> Result<Self, ExecError> {
        let label = label(graph, ops);
        let (inputs, outputs) = border(graph, region, ops);
        #[cfg(feature = "tract")]
        {
            if let Some(refused) = unspoken(graph, ops) {
                return Err(refused);
            }
            let part = part((module, graph, region), ops, shapes, (&inputs, &outputs));
            let runner = tract::Runner::new(&part, reader, label).map_err(|refused| {
                let at = (module, graph, region);
                culprit(at, ops, shapes, reader).unwrap_or(refused)
            })?;
            Ok(Self {
                inputs,
                outputs,
                runner,
                mixing: mixing(module, graph, ops),
            })
        }
        #[cfg(not(feature = "tract"))]
        {
            let _ = (module, shapes, reader, inputs, outputs);
            let problem = "there is no kernel for it; build with the feature tract";
            Err(label.unsupported(problem.to_string()))
        }
    }

    /// Values that come in.
    pub(super) fn inputs(&self) -> &[ValueId] {
        &self.inputs
    }

    /// Values that come out.
    pub(super) fn outputs(&self) -> &[ValueId] {
        &self.outputs
    }

    /// The first op of which a position's result may depend on other positions, as messages call it.
    pub(super) fn mixing(&self) -> Option<&str> {
        self.mixing.as_deref()
    }

    /// Runs the ops.
    ///
    /// # Errors
    /// [`ExecError::Unsupported`] says what tract refuses, or that it found no plan in time;
    /// [`ExecError::Interrupted`] once `stop` is set, without waiting for tract.
    pub(super) fn run(
        &self,
        inputs: &[&Tensor],
        stop: Option<&'static AtomicBool>,
    ) -> Result<Vec<Tensor>, ExecError> {
        #[cfg(feature = "tract")]
        {
            self.runner.run(inputs, stop)
        }
        #[cfg(not(feature = "tract"))]
        {
            let _ = (inputs, stop);
            Ok(Vec::new())
        }
    }
}

/// Ops whose results at a position follow from the same position of their inputs.
#[cfg(feature = "tract")]
const BY_POSITION: [&str; 40] = [
    "Abs",
    "Add",
    "Cast",
    "Ceil",
    "Celu",
    "Clip",
    "Cos",
    "Div",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Log",
    "Max",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Sub",
    "Sum",
    "Swish",
    "Tanh",
];

#[cfg(feature = "tract")]
fn mixing(module: &Module, graph: &Graph, ops: &[OpId]) -> Option<String> {
    // One number, or one per column: the same at every position.
    let even = |id: WeightId| {
        let dims = module.weight(id).map_or(&[][..], |weight| &weight.dims);
        let rows = dims.split_last().map_or(&[][..], |(_, rows)| rows);
        rows.iter().all(|&d| d == 1)
    };
    let by_position = |op: &crate::ir::Op| {
        let OpKind::Onnx(onnx) = &op.kind else {
            return false;
        };
        let standard = matches!(onnx.domain.as_str(), "" | "ai.onnx");
        let attrs = onnx.attrs.iter().filter_map(|(_, attr)| match attr {
            crate::ir::Attr::Weight(id) => Some(*id),
            _ => None,
        });
        let inputs = op.inputs.iter().filter_map(|operand| match operand {
            Operand::Weight(id) => Some(*id),
            _ => None,
        });
        let known = onnx.op_type == "Constant" || BY_POSITION.contains(&onnx.op_type.as_str());
        standard && known && attrs.chain(inputs).all(even)
    };
    let found = ops
        .iter()
        .filter_map(|id| graph.op(*id))
        .find(|op| !by_position(op))?;
    let kind = match &found.kind {
        OpKind::Onnx(onnx) => format!("onnx.{}", onnx.op_type),
        _ => String::new(),
    };
    Some(match found.name.is_empty() {
        true => kind,
        false => format!("{kind} {:?}", found.name),
    })
}

fn label(graph: &Graph, ops: &[OpId]) -> Label {
    let kind = |id: &OpId| match &graph.op(*id)?.kind {
        OpKind::Onnx(op) => Some(format!("onnx.{}", op.op_type)),
        _ => None,
    };
    let kinds: BTreeSet<String> = ops.iter().filter_map(kind).collect();
    let first = ops.first().and_then(|id| graph.op(*id));
    let named: Vec<String> = kinds.iter().take(KINDS).cloned().collect();
    let more = match kinds.len().saturating_sub(KINDS) {
        0 => String::new(),
        n => format!(" and {n} more kinds of ops, from"),
    };
    Label {
        ops: named.join(", ") + &more,
        name: first.map_or_else(String::new, |op| op.name.clone()),
    }
}

/// Ops and those of the regions inside them.
fn within(graph: &Graph, ops: &[OpId]) -> Vec<OpId> {
    let mut all = Vec::new();
    let mut open: Vec<OpId> = ops.to_vec();
    while let Some(id) = open.pop() {
        all.push(id);
        if let Some(op) = graph.op(id) {
            let inner = op.kind.regions();
            open.extend(inner.iter().flat_map(|r| r.ops.iter().copied()));
        }
    }
    all
}

fn values_read(graph: &Graph, ops: &[OpId]) -> Vec<ValueId> {
    let value = |o: &Operand| match o {
        Operand::Value(v) => Some(*v),
        _ => None,
    };
    let ops = within(graph, ops);
    let ops: Vec<_> = ops.iter().filter_map(|id| graph.op(*id)).collect();
    let direct = ops.iter().flat_map(|op| op.inputs.iter().filter_map(value));
    let nested = ops.iter().flat_map(|op| op.kind.regions());
    let returned = nested.flat_map(|r| r.outputs.iter().filter_map(value));
    direct.chain(returned).collect()
}

/// Values that the ops take from outside, and those that the outside takes from them.
fn border(graph: &Graph, region: &Region, ops: &[OpId]) -> (Vec<ValueId>, Vec<ValueId>) {
    let mut made: HashSet<ValueId> = HashSet::new();
    for id in within(graph, ops) {
        if let Some(op) = graph.op(id) {
            made.extend(op.results.iter().flatten());
            made.extend(op.kind.regions().iter().flat_map(|r| r.inputs.iter()));
        }
    }
    let read: BTreeSet<ValueId> = values_read(graph, ops).into_iter().collect();
    let inputs = read.into_iter().filter(|v| !made.contains(v)).collect();
    let inside: HashSet<OpId> = ops.iter().copied().collect();
    let others: Vec<OpId> = region
        .ops
        .iter()
        .copied()
        .filter(|o| !inside.contains(o))
        .collect();
    let mut needed: HashSet<ValueId> = values_read(graph, &others).into_iter().collect();
    needed.extend(region.outputs.iter().filter_map(|o| match o {
        Operand::Value(v) => Some(*v),
        _ => None,
    }));
    let results = ops.iter().filter_map(|id| graph.op(*id));
    let results = results.flat_map(|op| op.results.iter().flatten().copied());
    (inputs, results.filter(|v| needed.contains(v)).collect())
}

/// The refusal of the first op that tract reads as something else than it is.
#[cfg(feature = "tract")]
fn unspoken(graph: &Graph, ops: &[OpId]) -> Option<ExecError> {
    within(graph, ops).iter().find_map(|id| {
        let OpKind::Onnx(onnx) = &graph.op(*id)?.kind else {
            return None;
        };
        let alpha = onnx.attrs.get("alpha").and_then(crate::ir::Attr::as_float);
        let kind = onnx.op_type.as_str();
        let problem = match (onnx.domain.as_str(), kind) {
            ("" | "ai.onnx", "Celu" | "Swish") if alpha.is_some_and(|alpha| alpha != 1.0) => {
                format!("tract has {kind} with an alpha of 1 alone")
            }
            ("" | "ai.onnx", "Cast") if onnx.attrs.get("to").is_some_and(is_float8) => {
                "tract does not round to 8-bit floats".to_string()
            }
            ("" | "ai.onnx", _) => return None,
            (domain, _) => format!(
                "nothing runs ops of the domain {domain:?} here; if it is a function of the model, \
                 onnx.inliner.inline_local_functions puts its body in its place"
            ),
        };
        Some(label_of(graph, *id).unsupported(problem))
    })
}

/// Whether a Cast's `to` is one of the 8-bit float types (ONNX's numbers 17 to 20).
#[cfg(feature = "tract")]
fn is_float8(to: &crate::ir::Attr) -> bool {
    to.as_int().is_some_and(|to| (17..=20).contains(&to))
}

/// An op as messages call it: by its own name, or its result's.
#[cfg(feature = "tract")]
fn label_of(graph: &Graph, id: OpId) -> Label {
    let mut label = label(graph, &[id]);
    if label.name.is_empty() {
        let results = graph.op(id).into_iter().flat_map(|op| &op.results);
        let value = results.flatten().next().and_then(|v| graph.value(*v));
        label.name = value.map_or_else(String::new, |v| v.name.clone());
    }
    label
}

/// Longest that is looked for the op that is refused.
#[cfg(feature = "tract")]
const SEARCH: Duration = Duration::from_secs(10);

/// The refusal of the first op that is refused alone.
#[cfg(feature = "tract")]
fn culprit(
    (module, graph, region): (&Module, &Graph, &Region),
    ops: &[OpId],
    shapes: &Shapes,
    reader: &Reader,
) -> Option<ExecError> {
    let start = Instant::now();
    ops.iter()
        .take_while(|_| start.elapsed() < SEARCH)
        .find_map(|id| {
            let one = std::slice::from_ref(id);
            let label = label_of(graph, *id);
            let (inputs, outputs) = border(graph, region, one);
            let part = part((module, graph, region), one, shapes, (&inputs, &outputs));
            tract::Runner::new(&part, reader, label).err()
        })
}

/// A module of nothing but these ops.
#[cfg(feature = "tract")]
fn part(
    (module, graph, region): (&Module, &Graph, &Region),
    ops: &[OpId],
    shapes: &Shapes,
    (inputs, outputs): (&[ValueId], &[ValueId]),
) -> Module {
    let mut part = module.clone();
    let used: HashSet<WeightId> = within(graph, ops)
        .iter()
        .filter_map(|id| graph.op(*id))
        .flat_map(|op| op.weights())
        .collect();
    let mut body = Region {
        name: "part".to_string(),
        inputs: inputs.to_vec(),
        outputs: outputs.iter().map(|v| Operand::Value(*v)).collect(),
        ops: ops.to_vec(),
        ..Region::default()
    };
    let inner = within(graph, ops);
    let inner = inner.iter().filter_map(|id| graph.op(*id));
    let inner = inner.flat_map(|op| op.kind.regions());
    // What regions inside declare is theirs; what nobody does is declared here.
    let theirs: HashSet<WeightId> = inner.flat_map(|r| r.weights.iter().copied()).collect();
    let mut others: Vec<WeightId> = used.iter().copied().collect();
    others.retain(|w| !theirs.contains(w));
    others.sort_unstable();
    let declared = region.weights.iter().chain(&graph.body.weights).copied();
    let mut seen = HashSet::new();
    body.weights = declared
        .filter(|w| used.contains(w))
        .chain(others)
        .filter(|w| seen.insert(*w))
        .collect();
    let mut inner = graph.clone();
    for (i, value) in inner.values.iter_mut().enumerate() {
        if value.name.is_empty() {
            value.name = format!("part_{i}");
        }
        let is_port = inputs.iter().chain(outputs).any(|v| v.index() == i);
        if is_port && value.ty.is_none() {
            // Sizes differ from call to call. What kernels here make is f32, whatever the source had.
            let known = shapes.of(0, ValueId::new(i)).and_then(|known| known.dtype);
            let known = known.filter(|dtype| !dtype.is_float());
            value.ty = Some(Type::Tensor(TensorType {
                dtype: known.unwrap_or(DType::F32),
                shape: None,
            }));
        }
    }
    inner.body = body;
    if let Some(first) = part.graphs.first_mut() {
        *first = inner;
    }
    part
}
