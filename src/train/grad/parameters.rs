//! Parameters of ops, and the rules of their gradients.

use super::{Backward, Parameter, What};
use crate::ir::{
    Grad, Matrix, Native, Op, OpKind, Operand, Part, Rotation, Term, Training, ValueId, WeightId,
};

/// Every parameter of an op, regions apart.
pub fn of_op(op: &Op) -> Vec<Parameter> {
    let mut found = Vec::new();
    if let Some(matrix) = op.kind.matrix() {
        for term in &matrix.terms {
            found.extend(
                Part::of(term)
                    .into_iter()
                    .map(|(part, weight)| of_term(term, part, weight)),
            );
        }
    }
    match &op.kind {
        OpKind::Linear(linear) => found.extend(linear.bias.map(vector)),
        OpKind::Native(native) => {
            let vectors = op.inputs.iter().skip(1).take(vectors(native));
            found.extend(vectors.filter_map(|input| match input {
                Operand::Weight(id) => Some(vector(*id)),
                _ => None,
            }));
        }
        _ => {}
    }
    found
}

/// How many of a native op's inputs behind the first are gains, biases or the like.
fn vectors(native: &Native) -> usize {
    match native {
        Native::RmsNorm { .. } | Native::Add | Native::Mul => 1,
        Native::LayerNorm { .. } => 2,
        _ => 0,
    }
}

/// A weight that an op takes as it is.
pub(super) fn vector(weight: WeightId) -> Parameter {
    Parameter {
        weight,
        index: None,
        what: What::Vector,
    }
}

fn of_term(term: &Term, part: Part, weight: WeightId) -> Parameter {
    let index = match term {
        Term::Dense(view) => view.index,
        _ => None,
    };
    Parameter {
        weight,
        index,
        what: What::Part(part),
    }
}

/// How the gradient by a part of a term is made.
enum Rule {
    /// From the gradient by the matrix, in the term's coordinates.
    OfMatrix,
    /// By way of the factors, where activations are at hand.
    OfFactors,
}

/// The rule of each part.
const RULES: &[(Part, Rule)] = &[
    (Part::Dense, Rule::OfMatrix),
    (Part::Scales, Rule::OfMatrix),
    (Part::Zeros, Rule::OfMatrix),
    (Part::Codes, Rule::OfMatrix),
    (Part::Values, Rule::OfMatrix),
    (Part::U, Rule::OfFactors),
    (Part::V, Rule::OfFactors),
];

/// Where the gradient by a matrix comes from.
pub(super) enum Source {
    /// A linear along the last axis: `dy` and activations, and the linear's factor.
    Linear { dy: Operand, x: Operand, scale: f64 },
    /// A table of vectors: `dy` and indices.
    Table { dy: Operand, ids: Operand },
}

impl Backward<'_> {
    /// Gradients by the wanted parts of a matrix's terms.
    pub(super) fn parts(&mut self, op: &Op, matrix: &Matrix, source: &Source) {
        // The gradient by the matrix in each term's coordinates, made when first asked for.
        let mut made: Vec<(Option<Rotation>, ValueId)> = Vec::new();
        for term in &matrix.terms {
            let alone = Matrix {
                terms: vec![term.clone()],
                ..*matrix
            };
            let parts = Part::of(term).into_iter();
            let parts = parts.map(|(part, weight)| (part, of_term(term, part, weight)));
            let parts: Vec<(Part, Parameter)> =
                parts.filter(|(_, p)| self.parameters.contains(p)).collect();
            let by_factors = |part: Part| {
                let rule = RULES.iter().find(|(of, _)| *of == part);
                // Tensors of plugins' terms have none: their plugin makes theirs of the matrix's.
                matches!(rule, Some((_, Rule::OfFactors)))
            };
            if let (Source::Linear { dy, x, scale }, true) =
                (source, parts.iter().any(|(part, _)| by_factors(*part)))
            {
                let wanted = [Part::U, Part::V].map(|part| parts.iter().any(|(p, _)| *p == part));
                let grad = Grad::with_matrix(Training::Factors { scale: *scale }, alone.clone());
                let kind = OpKind::Grad(Box::new(grad));
                let both = self.emit(op, kind, vec![*dy, *x], &wanted);
                for (part, value) in [Part::U, Part::V].into_iter().zip(both) {
                    if let Some((_, parameter)) = parts.iter().find(|(p, _)| *p == part) {
                        self.give_parameter(op, *parameter, value);
                    }
                }
                continue;
            }
            for (part, parameter) in parts {
                let Some(dw) = self.of_matrix(op, matrix, source, term.rotation(), &mut made)
                else {
                    continue;
                };
                let value = match part {
                    Part::Codes => Some(dw),
                    _ => {
                        let grad = Grad::with_matrix(Training::Term { of: part }, alone.clone());
                        self.emit_one(op, grad, vec![Operand::Value(dw)])
                    }
                };
                self.give_parameter(op, parameter, value);
            }
        }
    }

    fn of_matrix(
        &mut self,
        op: &Op,
        matrix: &Matrix,
        source: &Source,
        rotation: Option<Rotation>,
        made: &mut Vec<(Option<Rotation>, ValueId)>,
    ) -> Option<ValueId> {
        if let Some((_, value)) = made.iter().find(|(of, _)| *of == rotation) {
            return Some(*value);
        }
        let value = match rotation {
            Some(r) => {
                let plain = self.of_matrix(op, matrix, source, None, made)?;
                let rotate = Training::Rotate {
                    out: r.out_block,
                    r#in: r.in_block,
                    seed: r.seed,
                };
                self.emit_one(op, Grad::op(rotate), vec![Operand::Value(plain)])?
            }
            None => {
                let (training, inputs) = match source {
                    Source::Linear { dy, x, scale } => {
                        (Training::Outer { scale: *scale }, vec![*dy, *x])
                    }
                    Source::Table { dy, ids } => {
                        let entries = matrix.out_features;
                        (Training::Scatter { entries }, vec![*dy, *ids])
                    }
                };
                self.emit_one(op, Grad::op(training), inputs)?
            }
        };
        made.push((rotation, value));
        Some(value)
    }
}
