//! The module as it is between passes, for printing and verifying.
//!
//! Matrix passes run fused, so a module "behind pass k" never exists as such; it is put together
//! from what each pass left, with the residual that it passed on shown as a dense weight without
//! bytes.

use super::Run;
use super::stage::Finished;
use crate::ir::text::{PrintOptions, print_with};
use crate::ir::{Attrs, Module, Storage, Term, Weight, WeightView};
use crate::weights::DType;

impl Run<'_> {
    fn wants(list: &[String], pass: &str) -> bool {
        list.iter().any(|p| p == "*" || p == pass)
    }

    pub(super) fn prints(&self) -> bool {
        let print = &self.options.print;
        !print.before.is_empty() || !print.after.is_empty() || print.after_change
    }

    pub(super) fn print_before(&self, module: &Module, pass: &str) {
        if Self::wants(&self.options.print.before, pass) {
            self.show(&format!("IR before {pass}"), module);
        }
    }

    pub(super) fn print_after(&self, module: &Module, pass: &str, changed: bool) {
        let print = &self.options.print;
        if Self::wants(&print.after, pass) || (print.after_change && changed) {
            self.show(&format!("IR after {pass}"), module);
        } else if print.after_change {
            self.observer.ir(&format!("IR after {pass}: no change"), "");
        }
    }

    fn show(&self, title: &str, module: &Module) {
        let text = print_with(module, &PrintOptions::default());
        self.observer.ir(title, &text);
    }
}

/// The module behind step `step` of a stage: `before` is the module that the stage began with, `after`
/// the one that it ended with.
pub(super) fn behind(
    before: &Module,
    after: &Module,
    finished: &[Finished],
    step: usize,
) -> (Module, bool) {
    let mut module = before.clone();
    // Ids of new weights start where the old ones end, in both.
    let new = after.weights.iter().skip(module.weights.len());
    module.weights.extend(new.cloned());
    let mut changed = false;
    for site in finished {
        if site.last <= step {
            changed |= site.last == step && site.put_back;
            changed |= site.made.iter().any(|(at, _)| *at == step);
            for at in &site.users {
                let ended = after.op(*at).and_then(|op| op.kind.matrix());
                let here = module.op_mut(*at).and_then(|op| op.kind.matrix_mut());
                if let (Some(here), Some(ended)) = (here, ended) {
                    here.terms.clone_from(&ended.terms);
                }
            }
            continue;
        }
        let mut terms = site.kept.clone();
        for (at, term) in &site.made {
            if *at <= step {
                terms.extend(term.clone());
                changed |= *at == step;
            }
        }
        let none_yet = site.made.iter().all(|(at, _)| *at > step);
        for at in &site.users {
            let Some(matrix) = module.op_mut(*at).and_then(|op| op.kind.matrix_mut()) else {
                continue;
            };
            if !none_yet {
                matrix.terms.clone_from(&terms);
            }
        }
        if !none_yet {
            let residual = module.add_weight(Weight {
                name: format!("{}.residual after step {step}", site.stem),
                dtype: DType::F32,
                dims: vec![site.rows, site.cols],
                storage: Storage::Absent,
                sha256: None,
                meta: Attrs::new(),
            });
            for at in &site.users {
                if let Some(matrix) = module.op_mut(*at).and_then(|op| op.kind.matrix_mut()) {
                    matrix.terms.push(Term::Dense(WeightView::whole(residual)));
                }
            }
        }
    }
    (module, changed)
}
