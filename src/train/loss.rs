//! Losses on a language model's logits.

use super::TrainError;
use crate::ir::{Grad, Module, Op, OpKind, Operand, Training, Type, ValueId};
use crate::weights::DType;

/// Inputs that losses read, besides the model's own.
pub const LABELS: &str = "train.labels";
/// Weights of the next token's cross entropy.
pub const LABEL_WEIGHTS: &str = "train.label_weights";
/// The teacher's logits, or the log-probabilities of its likeliest tokens.
pub const TEACHER: &str = "train.teacher";
/// The ids of the teacher's likeliest tokens.
pub const TEACHER_IDS: &str = "train.teacher_ids";
/// Weights of the divergence from the teacher.
pub const TEACHER_WEIGHTS: &str = "train.teacher_weights";
/// What a block's result number `i` should be is `train.target.i`.
pub const TARGET: &str = "train.target";
/// Weights of the tokens of a block's result.
pub const TARGET_WEIGHTS: &str = "train.target_weights";

/// Which losses a language model gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// The next token's cross entropy.
    pub cross_entropy: bool,
    /// The divergence from a teacher.
    pub kl: bool,
    /// The teacher by its likeliest tokens.
    pub top: bool,
}

/// The model with losses on its first output, which alone come out: cross entropy first.
///
/// # Errors
/// The module has no graph or no output.
pub fn on_logits(module: &Module, losses: Losses) -> Result<Module, TrainError> {
    let mut module = module.clone();
    let no_output = || TrainError::Settings("the model has no output to judge".to_string());
    let graph = module.graphs.first_mut().ok_or_else(no_output)?;
    let Some(Operand::Value(logits)) = graph.body.outputs.first().copied() else {
        return Err(no_output());
    };
    let mut made = Vec::new();
    if losses.cross_entropy {
        let labels = input(graph, LABELS, DType::I64);
        let weights = input(graph, LABEL_WEIGHTS, DType::F32);
        let inputs = vec![logits, labels, weights];
        made.push(add(
            graph,
            "train.cross_entropy",
            Training::CrossEntropy,
            inputs,
        ));
    }
    if losses.kl {
        let mut inputs = vec![logits];
        let training = match losses.top {
            true => {
                inputs.push(input(graph, TEACHER_IDS, DType::I64));
                Training::TopKl
            }
            false => Training::Kl,
        };
        inputs.push(input(graph, TEACHER, DType::F32));
        inputs.push(input(graph, TEACHER_WEIGHTS, DType::F32));
        made.push(add(graph, "train.kl", training, inputs));
    }
    graph.body.outputs = made;
    Ok(module)
}

/// A block with a loss on each of some results: the losses come out first, then what came out.
pub fn on_results(module: &Module, results: &[ValueId]) -> Module {
    let mut module = module.clone();
    if let Some(graph) = module.graphs.first_mut() {
        let weights = input(graph, TARGET_WEIGHTS, DType::F32);
        let mut outputs = Vec::new();
        for (i, &result) in results.iter().enumerate() {
            let target = input(graph, &format!("{TARGET}.{i}"), DType::F32);
            let inputs = vec![result, target, weights];
            let name = format!("train.error.{i}");
            outputs.push(add(graph, &name, Training::MeanSquare, inputs));
        }
        graph.body.outputs = outputs;
    }
    module
}

fn input(graph: &mut crate::ir::Graph, name: &str, dtype: DType) -> ValueId {
    let ty = Type::Tensor(crate::ir::TensorType { dtype, shape: None });
    let value = graph.add_value(name, Some(ty));
    graph.body.inputs.push(value);
    value
}

fn add(
    graph: &mut crate::ir::Graph,
    name: &str,
    training: Training,
    inputs: Vec<ValueId>,
) -> Operand {
    let loss = graph.add_value(name, None);
    let inputs = inputs.into_iter().map(Operand::Value).collect();
    let kind = OpKind::Grad(Box::new(Grad::op(training)));
    graph.append(Op::new(kind, inputs, loss));
    Operand::Value(loss)
}
