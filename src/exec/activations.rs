//! What goes into linears, in the forms that their terms take it.

use std::borrow::Cow;

use super::Pool;
use super::kernels::hadamard;
use super::kernels::quant::Int8Activations;
use crate::numeric::hadamard::Rotation;

/// A form in which a term takes activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    /// The coordinates of the term's inputs, where they are not the matrix's own.
    pub(super) side: Option<Rotation>,
    /// Whether the term can take them rounded to int8.
    pub(super) codes: bool,
}

/// Activations `[tokens, cols]` in the coordinates that terms ask for.
pub(super) struct Coordinates<'a> {
    tokens: usize,
    cols: usize,
    forms: Vec<(Option<Rotation>, Cow<'a, [f32]>)>,
}

impl<'a> Coordinates<'a> {
    /// Rotates `x` as the needs say, once for each rotation.
    pub(super) fn new(
        pool: &Pool,
        x: &'a [f32],
        cols: usize,
        needs: impl Iterator<Item = Need>,
    ) -> Self {
        let mut forms = vec![(None, Cow::Borrowed(x))];
        for need in needs {
            if forms.iter().all(|(side, _)| *side != need.side) {
                let Some(side) = need.side else { continue };
                let mut turned = x.to_vec();
                hadamard::rotate(pool, &side, &mut turned, cols);
                forms.push((need.side, Cow::Owned(turned)));
            }
        }
        Self {
            tokens: x.len() / cols.max(1),
            cols,
            forms,
        }
    }

    /// The same with int8 roundings for the terms that can take them.
    pub(super) fn forms(
        &self,
        pool: &Pool,
        rounded: impl Fn(Option<Rotation>) -> bool,
    ) -> Forms<'_> {
        let mut forms = Vec::with_capacity(self.forms.len());
        for entry in &self.forms {
            let (side, values): (Option<Rotation>, &[f32]) = (entry.0, &entry.1);
            let round = || Int8Activations::quantize(pool, values, self.tokens, self.cols);
            forms.push((side, values, rounded(side).then(round)));
        }
        Forms {
            tokens: self.tokens,
            forms,
        }
    }
}

type Form<'a> = (Option<Rotation>, &'a [f32], Option<Int8Activations<'a>>);

/// Activations in every form that terms ask for.
pub(super) struct Forms<'a> {
    pub(super) tokens: usize,
    forms: Vec<Form<'a>>,
}

impl Forms<'_> {
    /// As they are.
    pub(super) fn plain(&self) -> &[f32] {
        self.forms.first().map_or(&[], |f| f.1)
    }

    /// In these coordinates, and rounded where that was asked for.
    pub(super) fn of(&self, side: Option<Rotation>) -> (&[f32], Option<&Int8Activations<'_>>) {
        let found = self.forms.iter().find(|f| f.0 == side);
        found.map_or((self.plain(), None), |f| (f.1, f.2.as_ref()))
    }
}
