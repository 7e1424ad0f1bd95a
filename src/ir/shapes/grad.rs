//! What ops of training make: gradients have the shape of what they are by.

use super::fact::Fact;
use super::size::Size;
use crate::ir::{Grad, GradKind, Native, Part, Training};
use crate::weights::DType;

/// The results of an op of training, whose inputs are known as far as they are.
pub(super) fn results(grad: &Grad, inputs: &[Option<Fact>]) -> Vec<Fact> {
    let like = |at: usize| {
        let of = inputs.get(at).and_then(Option::as_ref);
        let shape = of.and_then(|fact| fact.shape.clone());
        Fact::new(Some(DType::F32), shape)
    };
    let training = match &grad.kind {
        GradKind::Of(native) => return of_native(native, like),
        GradKind::Op(training) => training,
    };
    let size = |n: u64| i64::try_from(n).ok().map(Size::of);
    let sized = |sizes: &[Option<Size>]| {
        let shape = sizes.iter().cloned().collect::<Option<Vec<Size>>>();
        Fact::new(Some(DType::F32), shape)
    };
    let width = |at: usize| like(at).shape.and_then(|shape| shape.last().cloned());
    match training {
        Training::CrossEntropy | Training::Kl | Training::TopKl | Training::MeanSquare => {
            vec![sized(&[])]
        }
        Training::CrossEntropyGrad
        | Training::KlGrad
        | Training::TopKlGrad
        | Training::MeanSquareGrad
        | Training::Rotate { .. } => vec![like(0)],
        Training::Linear { .. } => {
            let mut dx = like(0);
            let last = dx.shape.as_mut().and_then(|shape| shape.last_mut());
            let wide = grad.matrix.as_ref().and_then(|m| size(m.in_features));
            match (last, wide) {
                (Some(last), Some(wide)) => *last = wide,
                _ => dx.shape = None,
            }
            vec![dx]
        }
        Training::Outer { .. } => vec![sized(&[width(0), width(1)])],
        Training::Scatter { entries } => vec![sized(&[size(*entries), width(0)])],
        Training::SumRows => vec![sized(&[width(0)])],
        Training::Term {
            of: Part::Codes, ..
        } => vec![like(0)],
        Training::Term { .. } => vec![Fact::new(Some(DType::F32), None)],
        Training::Factors { .. } => vec![Fact::new(Some(DType::F32), None); 2],
        Training::Moe { .. } => vec![like(1), like(2)],
    }
}

fn of_native(native: &Native, like: impl Fn(usize) -> Fact) -> Vec<Fact> {
    match native {
        // Their results have their inputs' shapes, so `dy` has too.
        Native::Rope { .. } | Native::Scale { .. } | Native::Hadamard { .. } => vec![like(0)],
        _ => (1..=Grad::native_results(native)).map(like).collect(),
    }
}
