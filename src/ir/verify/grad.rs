//! Invariant 8: ops of training have the inputs, results and terms that they need.

use super::Verifier;
use crate::ir::{Grad, GradKind, Matrix, Native, Op, Part, Training};

impl Verifier<'_> {
    pub(super) fn grad(&mut self, op: &Op, grad: &Grad, place: &str) {
        let (inputs, results) = (op.inputs.len(), op.results.len());
        let (least, most, makes) = match &grad.kind {
            GradKind::Of(Native::Positions) => {
                return self.report(place, "positions have no gradient");
            }
            GradKind::Of(native) => {
                let (least, most) = native.arity();
                (least + 1, most + 1, Grad::native_results(native))
            }
            GradKind::Op(training) => {
                let (takes, makes) = training.arity();
                (takes, takes, makes)
            }
        };
        // A scale by a weight takes it as its second input.
        let scale = matches!(grad.kind, GradKind::Of(Native::Scale { .. }));
        if inputs < least || inputs > most + usize::from(scale) {
            let what = format!("has {inputs} inputs, needs {least} to {most}");
            self.report(place, what);
        }
        let open = matches!(grad.kind, GradKind::Op(Training::Moe { .. }));
        if results < makes || (results > makes && !open) {
            self.report(place, format!("has {results} results, needs {makes}"));
        }
        match (&grad.matrix, &grad.kind) {
            (Some(matrix), GradKind::Op(training)) if training.has_matrix() => {
                self.matrix(matrix, place);
                self.parts(matrix, training, place);
            }
            (None, GradKind::Op(training)) if training.has_matrix() => {
                self.report(place, "has no matrix");
            }
            (Some(_), _) => self.report(place, "has a matrix, needs none"),
            (None, _) => {}
        }
        self.gradients_of_experts(op, grad, place);
    }

    /// Ops that are about one term have it alone, and it has the part in question.
    fn parts(&mut self, matrix: &Matrix, training: &Training, place: &str) {
        let parts: &[Part] = match training {
            Training::Term { of } => &[*of],
            Training::Factors { .. } => &[Part::U, Part::V],
            _ => return,
        };
        let [term] = matrix.terms.as_slice() else {
            let count = matrix.terms.len();
            return self.report(place, format!("has {count} terms, needs 1"));
        };
        let has = Part::of(term);
        for part in parts {
            if !has.iter().any(|(other, _)| other == part) {
                let what = format!("a {} term has no {}", term.name(), part.name());
                self.report(place, what);
            }
        }
    }

    fn gradients_of_experts(&mut self, op: &Op, grad: &Grad, place: &str) {
        let GradKind::Op(Training::Moe { top_k, .. }) = grad.kind else {
            if !grad.experts.is_empty() {
                self.report(place, "has experts, needs none");
            }
            return;
        };
        let experts = grad.experts.len();
        if top_k == 0 || top_k as usize > experts {
            let what = format!("sends a token to {top_k} of {experts} experts");
            self.report(place, what);
        }
        let mut made = 2;
        for region in &grad.experts {
            if region.inputs.len() != 2 || region.outputs.len() < 2 {
                let name = &region.name;
                let what = format!("expert \"{name}\" needs two inputs and at least two outputs");
                self.report(place, what);
            }
            made += region.outputs.len().saturating_sub(2);
        }
        if op.results.len() != made {
            let results = op.results.len();
            let what = format!("has {results} results, its experts make {made}");
            self.report(place, what);
        }
    }
}
