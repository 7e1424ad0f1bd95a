//! From a graph to steps: weights located, buffers' last uses known.

mod fuse;
mod grad;
mod rows;

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};

use fuse::fuse_glu;

use super::grad::{ExpertGrad, PreparedGrad};
use super::kernels::rope::RopeTable;
use super::matrix::PreparedMatrix;
use super::ops::Prepared;
use super::tensor::Tensor;
use super::{ExecError, Options};
use crate::exec::foreign::Foreign;
use crate::ir::shapes::Shapes;
use crate::ir::{
    Activation, Graph, Layout, Linear, Module, Moe, Native, Op, OpId, OpKind, Operand, Region,
    RopeScaling, Type, ValueId, WeightId,
};
use crate::store::{self, Reader};
use crate::weights::DType;

/// A graph, ready to run.
pub(super) struct Program {
    pub(super) inputs: Vec<Port>,
    pub(super) outputs: Vec<Port>,
    pub(super) steps: Vec<Step>,
    /// Steps from here on treat each row (token) by itself.
    pub(super) tail: usize,
    /// Values made before the tail that the tail reads.
    pub(super) across: Vec<usize>,
    /// Number of values.
    pub(super) slots: usize,
    /// Constants that ops take as operands.
    pub(super) constants: Vec<Tensor>,
    /// Names and element types of the weights that they are.
    pub(super) constant_names: Vec<(String, DType)>,
    /// Heads of keys in each slot of the KV cache, and their width.
    pub(super) caches: Vec<(usize, usize)>,
    /// Frequencies of rotary embeddings.
    pub(super) rope_tables: Vec<RopeTable>,
}

/// An input or output of a module.
#[derive(Clone, Debug, PartialEq)]
pub struct Port {
    /// Its name in the source.
    pub name: String,
    /// Its type, as far as the source says.
    pub ty: Option<Type>,
    pub(super) arg: Arg,
}

/// Where an operand comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Arg {
    None,
    Slot(usize),
    Constant(usize),
}

/// One op, ready to run.
pub(super) struct Step {
    pub(super) kind: Kind,
    /// The op that it is of; of several the first, of a gate the product.
    pub(super) id: OpId,
    /// What the op is called in text, for messages.
    pub(super) op: &'static str,
    /// The op's name in its source.
    pub(super) name: String,
    pub(super) inputs: Vec<Arg>,
    pub(super) outputs: Vec<Option<usize>>,
    /// Values that nothing needs after this step.
    pub(super) last_uses: Vec<usize>,
}

/// What a step computes.
pub(super) enum Kind {
    Linear(Box<PreparedLinear>),
    Embedding(PreparedMatrix),
    Moe(PreparedMoe),
    Native(Prepared),
    /// activation(first) · second
    Glu(Activation),
    Foreign(Box<Foreign>),
    Grad(Box<PreparedGrad>),
}

/// A linear with its bias.
pub(super) struct PreparedLinear {
    pub(super) matrix: PreparedMatrix,
    pub(super) bias: Option<Vec<f32>>,
    /// The bias's weight and its element type.
    pub(super) bias_of: Option<(String, DType)>,
    pub(super) layout: Layout,
    pub(super) scale: f32,
}

/// A mixture of experts.
pub(super) struct PreparedMoe {
    pub(super) top_k: usize,
    pub(super) normalize: bool,
    pub(super) experts: Vec<Expert>,
}

/// One expert: a region from tokens to tokens.
pub(super) struct Expert {
    pub(super) input: usize,
    pub(super) output: Arg,
    pub(super) steps: Vec<Step>,
}

/// Compiles the module's first graph.
pub(super) fn compile(
    module: &Module,
    reader: &Reader,
    options: &Options,
) -> Result<Program, ExecError> {
    let graph = module
        .graphs
        .first()
        .ok_or_else(|| ExecError::NotLanguageModel("the module has no graph".to_string()))?;
    let mut compiler = Compiler {
        module,
        graph,
        reader,
        options,
        constants: Vec::new(),
        constant_names: Vec::new(),
        constant_of: HashMap::new(),
        caches: Vec::new(),
        ropes: Vec::new(),
        shapes: OnceCell::new(),
    };
    let mut steps = compiler.steps(&graph.body)?;
    let port = |compiler: &mut Compiler, operand: &Operand| -> Result<Port, ExecError> {
        let value = match operand {
            Operand::Value(v) => graph.value(*v),
            _ => None,
        };
        Ok(Port {
            name: value.map_or_else(String::new, |v| v.name.clone()),
            ty: value.and_then(|v| v.ty.clone()),
            arg: compiler.arg(operand)?,
        })
    };
    let mut inputs = Vec::new();
    for id in &graph.body.inputs {
        inputs.push(port(&mut compiler, &Operand::Value(*id))?);
    }
    let mut outputs = Vec::new();
    for operand in &graph.body.outputs {
        outputs.push(port(&mut compiler, operand)?);
    }
    fuse_glu(&mut steps, &outputs);
    mark_last_uses(&mut steps, &outputs);
    let tail = steps.iter().rposition(|s| !s.is_row_wise());
    let tail = tail.map_or(0, |i| i + 1);
    Ok(Program {
        across: across(&steps[tail..], &outputs),
        inputs,
        outputs,
        steps,
        tail,
        slots: graph.values.len(),
        constants: compiler.constants,
        constant_names: compiler.constant_names,
        caches: compiler.caches,
        rope_tables: compiler.ropes.iter().map(Rope::table).collect(),
    })
}

struct Compiler<'a> {
    module: &'a Module,
    graph: &'a Graph,
    reader: &'a Reader<'a>,
    options: &'a Options,
    constants: Vec<Tensor>,
    constant_names: Vec<(String, DType)>,
    constant_of: HashMap<WeightId, usize>,
    caches: Vec<(usize, usize)>,
    ropes: Vec<Rope>,
    /// Inferred types; foreign ops alone need them.
    shapes: OnceCell<Shapes>,
}

/// What frequencies follow from.
#[derive(PartialEq)]
struct Rope {
    theta: f64,
    rotary_dim: usize,
    scaling: Option<RopeScaling>,
}

impl Rope {
    fn table(&self) -> RopeTable {
        RopeTable::new(self.theta, self.rotary_dim, self.scaling.as_ref())
    }
}

impl Compiler<'_> {
    fn steps(&mut self, region: &Region) -> Result<Vec<Step>, ExecError> {
        let mut steps = Vec::with_capacity(region.ops.len());
        let mut foreign: Vec<OpId> = Vec::new();
        for &id in &region.ops {
            let Some(op) = self.graph.op(id) else {
                continue;
            };
            if matches!(op.kind, OpKind::Onnx(_)) {
                foreign.push(id);
                continue;
            }
            self.flush(&mut foreign, region, &mut steps)?;
            steps.push(self.step(id, op)?);
        }
        self.flush(&mut foreign, region, &mut steps)?;
        Ok(steps)
    }

    /// Makes one step of a run of ONNX ops.
    fn flush(
        &mut self,
        ops: &mut Vec<OpId>,
        region: &Region,
        steps: &mut Vec<Step>,
    ) -> Result<(), ExecError> {
        let ops = std::mem::take(ops);
        let first = ops.first().and_then(|id| Some((*id, self.graph.op(*id)?)));
        let Some((id, first)) = first else {
            return Ok(());
        };
        let name = first.name.clone();
        let shapes = self.shapes.get_or_init(|| store::shapes(self.module));
        let from = (self.module, self.graph, region);
        let foreign = Foreign::new(from, &ops, shapes, self.reader)?;
        let inputs = foreign.inputs().iter().map(|v| Arg::Slot(v.index()));
        steps.push(Step {
            inputs: inputs.collect(),
            outputs: foreign.outputs().iter().map(|v| Some(v.index())).collect(),
            kind: Kind::Foreign(Box::new(foreign)),
            id,
            op: "onnx",
            name,
            last_uses: Vec::new(),
        });
        Ok(())
    }

    fn step(&mut self, id: OpId, op: &Op) -> Result<Step, ExecError> {
        let (kind, label) = match &op.kind {
            OpKind::Linear(linear) => (self.linear(linear)?, "linear"),
            OpKind::Embedding(e) => (Kind::Embedding(self.matrix(&e.matrix)?), "embedding"),
            OpKind::Moe(moe) => (Kind::Moe(self.moe(moe)?), "moe"),
            OpKind::Native(native) => (Kind::Native(self.native(native)), native.name()),
            OpKind::Grad(grad) => (Kind::Grad(Box::new(self.grad(grad)?)), grad::label(grad)),
            OpKind::Onnx(_) => {
                return Err(ExecError::Unsupported {
                    op: "onnx".to_string(),
                    name: op.name.clone(),
                    problem: "stands where no ONNX op may".to_string(),
                });
            }
        };
        let inputs: Result<Vec<Arg>, ExecError> = op.inputs.iter().map(|o| self.arg(o)).collect();
        Ok(Step {
            kind,
            id,
            op: label,
            name: op.name.clone(),
            inputs: inputs?,
            outputs: op.results.iter().map(|r| r.map(ValueId::index)).collect(),
            last_uses: Vec::new(),
        })
    }

    fn matrix(&self, matrix: &crate::ir::Matrix) -> Result<PreparedMatrix, ExecError> {
        PreparedMatrix::new(self.module, self.reader, matrix, self.options.without)
    }

    fn linear(&mut self, linear: &Linear) -> Result<Kind, ExecError> {
        let bias = match linear.bias {
            Some(id) => Some(self.floats(id)?),
            None => None,
        };
        Ok(Kind::Linear(Box::new(PreparedLinear {
            matrix: self.matrix(&linear.matrix)?,
            bias,
            bias_of: linear.bias.and_then(|id| {
                let weight = self.module.weight(id)?;
                Some((weight.name.clone(), weight.dtype))
            }),
            layout: linear.layout,
            scale: linear.scale,
        })))
    }

    fn moe(&mut self, moe: &Moe) -> Result<PreparedMoe, ExecError> {
        let mut experts = Vec::with_capacity(moe.experts.len());
        for region in &moe.experts {
            let (Some(input), Some(output)) = (region.inputs.first(), region.outputs.first())
            else {
                return Err(ExecError::Unsupported {
                    op: "moe".to_string(),
                    name: String::new(),
                    problem: "an expert has no input or no output".to_string(),
                });
            };
            let (input, output) = (input.index(), self.arg(output)?);
            let mut steps = self.steps(region)?;
            let port = Port {
                name: String::new(),
                ty: None,
                arg: output,
            };
            fuse_glu(&mut steps, std::slice::from_ref(&port));
            mark_last_uses_within(&mut steps, &[port], &[input]);
            experts.push(Expert {
                input,
                output,
                steps,
            });
        }
        Ok(PreparedMoe {
            top_k: moe.top_k as usize,
            normalize: moe.normalize,
            experts,
        })
    }

    fn native(&mut self, native: &Native) -> Prepared {
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let mut table = 0;
        match native {
            Native::Attention {
                kv_heads,
                head_dim,
                cache: Some(slot),
                ..
            } => {
                // Slots are numbered by layer.
                let slot = size(*slot).min(1 << 16);
                if self.caches.len() <= slot {
                    self.caches.resize(slot + 1, (0, 0));
                }
                self.caches[slot] = (size(*kv_heads), size(*head_dim));
            }
            Native::Rope {
                theta,
                head_dim,
                rotary_dim,
                scaling,
                ..
            } => {
                let rope = Rope {
                    theta: *theta,
                    rotary_dim: size(*rotary_dim.min(head_dim)),
                    scaling: scaling.clone(),
                };
                let known = self.ropes.iter().position(|r| *r == rope);
                table = known.unwrap_or(self.ropes.len());
                if known.is_none() {
                    self.ropes.push(rope);
                }
            }
            _ => {}
        }
        Prepared::new(native, table)
    }

    fn arg(&mut self, operand: &Operand) -> Result<Arg, ExecError> {
        Ok(match operand {
            Operand::None => Arg::None,
            Operand::Value(v) => Arg::Slot(v.index()),
            Operand::Weight(w) => Arg::Constant(self.constant(*w)?),
        })
    }

    fn constant(&mut self, id: WeightId) -> Result<usize, ExecError> {
        if let Some(&at) = self.constant_of.get(&id) {
            return Ok(at);
        }
        let shape: Option<Vec<usize>> = self.module.weight(id).and_then(|w| {
            let sizes = w.dims.iter().map(|&d| usize::try_from(d).ok());
            sizes.collect()
        });
        let shape = shape.unwrap_or_default();
        let integer = self
            .module
            .weight(id)
            .is_some_and(|w| w.dtype == DType::I64);
        let tensor = if integer {
            let bytes = self.reader.bytes(self.module, id)?;
            let long = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap_or_default());
            Tensor::i64(&shape, bytes.chunks_exact(8).map(long).collect())
        } else {
            Tensor::f32(&shape, self.floats(id)?)
        };
        self.constants.push(tensor);
        let named = self.module.weight(id).map(|w| (w.name.clone(), w.dtype));
        self.constant_names
            .push(named.unwrap_or((String::new(), DType::F32)));
        self.constant_of.insert(id, self.constants.len() - 1);
        Ok(self.constants.len() - 1)
    }

    fn floats(&self, id: WeightId) -> Result<Vec<f32>, ExecError> {
        super::matrix::floats(self.module, self.reader, id)
    }
}

fn mark_last_uses(steps: &mut [Step], outputs: &[Port]) {
    let mut needed: HashSet<usize> = slots(outputs.iter().map(|p| p.arg)).collect();
    for step in steps.iter_mut().rev() {
        let made = step.outputs.iter().flatten();
        let unread: Vec<usize> = made.copied().filter(|s| !needed.contains(s)).collect();
        let reads: Vec<usize> = step.reads().collect();
        step.last_uses = unread;
        for slot in reads {
            if needed.insert(slot) {
                step.last_uses.push(slot);
            }
        }
    }
}

/// As [`mark_last_uses`], but frees only what the region itself made.
fn mark_last_uses_within(steps: &mut [Step], outputs: &[Port], inputs: &[usize]) {
    mark_last_uses(steps, outputs);
    let mut made: HashSet<usize> = steps
        .iter()
        .flat_map(|s| s.outputs.clone())
        .flatten()
        .collect();
    made.extend(inputs);
    for step in steps {
        step.last_uses.retain(|slot| made.contains(slot));
    }
}

fn across(tail: &[Step], outputs: &[Port]) -> Vec<usize> {
    let made: HashSet<usize> = tail
        .iter()
        .flat_map(|s| s.outputs.clone())
        .flatten()
        .collect();
    let reads = tail.iter().flat_map(Step::reads);
    let mut read: Vec<usize> = reads.chain(slots(outputs.iter().map(|p| p.arg))).collect();
    read.sort_unstable();
    read.dedup();
    read.retain(|slot| !made.contains(slot));
    read
}

fn slots(args: impl Iterator<Item = Arg>) -> impl Iterator<Item = usize> {
    args.filter_map(|a| match a {
        Arg::Slot(slot) => Some(slot),
        _ => None,
    })
}

impl Step {
    /// The values that the step reads, those of nested regions included.
    pub(super) fn reads(&self) -> impl Iterator<Item = usize> + '_ {
        let nested = match &self.kind {
            Kind::Moe(moe) => moe.experts.iter().flat_map(Expert::reads_outside).collect(),
            Kind::Grad(op) => op
                .experts
                .iter()
                .flat_map(ExpertGrad::reads_outside)
                .collect(),
            _ => Vec::new(),
        };
        slots(self.inputs.iter().copied()).chain(nested)
    }
}

impl Expert {
    fn reads_outside(&self) -> Vec<usize> {
        let made = self.steps.iter().flat_map(|s| s.outputs.clone()).flatten();
        let mut inside: HashSet<usize> = made.collect();
        inside.insert(self.input);
        let reads = self.steps.iter().flat_map(Step::reads);
        reads.filter(|slot| !inside.contains(slot)).collect()
    }
}
