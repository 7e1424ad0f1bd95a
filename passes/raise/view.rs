//! Views: values whose elements are those of another value, in another order.
//!
//! Exporters reshape and transpose between `[B,S,width]` and heads in dozens of ways. Followed as
//! views, all of them are the same: each axis is a list of atoms, an atom a run over one dimension
//! of the base.

use super::sample::{PROBES, Size};
use crate::ir::ValueId;

/// A value that views start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// A value of the graph as it was.
    Old(ValueId),
    /// The result of a new op, by number.
    New(usize),
}

/// A run over a dimension of the base, or a repetition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Atom {
    /// The dimension; `None` repeats.
    pub(super) dim: Option<usize>,
    /// Elements of the dimension between neighbours.
    pub(super) stride: usize,
    /// How many.
    pub(super) size: Size,
}

/// A value as elements of another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct View {
    pub(super) base: Source,
    /// Sizes of the base's dimensions.
    pub(super) dims: Vec<Size>,
    /// For each axis its atoms, the slowest first.
    pub(super) axes: Vec<Vec<Atom>>,
    /// First element of the last dimension.
    pub(super) start: usize,
    /// Keys or values of earlier calls in front of dimension 1.
    pub(super) past: Option<ValueId>,
}

pub(super) const ONE: Size = [1; PROBES];

/// A size that is the same at every probe.
pub(super) fn fixed(size: Size) -> Option<usize> {
    let [first, second] = size;
    (first == second).then_some(first)
}

fn times(a: Size, b: Size) -> Option<Size> {
    let [a0, a1] = a;
    let [b0, b1] = b;
    Some([a0.checked_mul(b0)?, a1.checked_mul(b1)?])
}

/// The product of atoms' sizes.
pub(super) fn product(atoms: &[Atom]) -> Option<Size> {
    atoms.iter().try_fold(ONE, |n, atom| times(n, atom.size))
}

impl Atom {
    fn split(self, outer: usize) -> Option<(Atom, Atom)> {
        let size = fixed(self.size)?;
        let inner = size
            .checked_div(outer)
            .filter(|i| i.checked_mul(outer) == Some(size))?;
        let high = Atom {
            stride: self.stride.checked_mul(inner)?,
            size: [outer; PROBES],
            ..self
        };
        let low = Atom {
            size: [inner; PROBES],
            ..self
        };
        Some((high, low))
    }
}

/// Drops atoms of size one and joins neighbours that run on.
pub(super) fn tidy(atoms: &[Atom]) -> Vec<Atom> {
    let mut out: Vec<Atom> = Vec::new();
    for atom in atoms.iter().filter(|a| a.size != ONE) {
        if let Some(last) = out.last_mut()
            && last.dim == atom.dim
            && let Some(size) = fixed(atom.size)
            && (last.dim.is_none() || size.checked_mul(atom.stride) == Some(last.stride))
            && let Some(joined) = times(last.size, atom.size)
        {
            last.size = joined;
            last.stride = atom.stride;
            continue;
        }
        out.push(*atom);
    }
    out
}

impl View {
    /// The value itself.
    pub(super) fn whole(base: Source, dims: Vec<Size>) -> Self {
        let atom = |(dim, &size): (usize, &Size)| Atom {
            dim: Some(dim),
            stride: 1,
            size,
        };
        let axes = dims
            .iter()
            .enumerate()
            .map(|pair| tidy(&[atom(pair)]))
            .collect();
        Self {
            base,
            dims,
            axes,
            start: 0,
            past: None,
        }
    }

    /// Whether it is its base, element for element and in shape.
    pub(super) fn is_whole(&self) -> bool {
        *self == Self::whole(self.base, self.dims.clone())
    }

    /// The same arrangement of another base of the same shape.
    pub(super) fn over(&self, base: Source) -> Self {
        Self {
            base,
            ..self.clone()
        }
    }

    /// The sizes of its axes.
    pub(super) fn shape(&self) -> Option<Vec<Size>> {
        self.axes.iter().map(|axis| product(axis)).collect()
    }

    fn with(&self, axes: Vec<Vec<Atom>>) -> Self {
        let axes = axes.iter().map(|axis| tidy(axis)).collect();
        Self {
            axes,
            ..self.clone()
        }
    }

    pub(super) fn reshape(&self, target: &[Size]) -> Option<Self> {
        let mut atoms: Vec<Atom> = self.axes.iter().flatten().copied().rev().collect();
        let mut axes = Vec::with_capacity(target.len());
        for &wanted in target {
            let mut axis = Vec::new();
            let mut have = ONE;
            while have != wanted {
                let atom = atoms.pop()?;
                let full = times(have, atom.size)?;
                let fits = full.iter().zip(&wanted).all(|(f, w)| f <= w);
                if fits {
                    have = full;
                    axis.push(atom);
                    continue;
                }
                let [h0, h1] = have;
                let [w0, w1] = wanted;
                let part = fixed([w0.checked_div(h0)?, w1.checked_div(h1)?])?;
                let (high, low) = atom.split(part)?;
                have = times(have, high.size)?;
                axis.push(high);
                atoms.push(low);
                if have != wanted {
                    return None;
                }
            }
            axes.push(axis);
        }
        atoms.is_empty().then(|| self.with(axes))
    }

    pub(super) fn transpose(&self, perm: &[usize]) -> Option<Self> {
        let axes = perm.iter().map(|&p| self.axes.get(p).cloned());
        Some(self.with(axes.collect::<Option<_>>()?))
    }

    pub(super) fn unsqueeze(&self, new: &[usize]) -> Option<Self> {
        let mut old = self.axes.iter();
        let axes = (0..self.axes.len() + new.len()).map(|at| match new.contains(&at) {
            true => Some(Vec::new()),
            false => old.next().cloned(),
        });
        Some(self.with(axes.collect::<Option<_>>()?))
    }

    /// Repeats axes of size one up to a shape.
    pub(super) fn expand(&self, shape: &[Size]) -> Option<Self> {
        let lead = shape.len().checked_sub(self.axes.len())?;
        let mut axes = vec![Vec::new(); lead];
        axes.extend(self.axes.clone());
        for (axis, &wanted) in axes.iter_mut().zip(shape) {
            let have = product(axis)?;
            if have == wanted {
                continue;
            }
            if have != ONE {
                return None;
            }
            axis.push(Atom {
                dim: None,
                stride: 0,
                size: wanted,
            });
        }
        Some(self.with(axes))
    }

    /// Every `step`-th element of an axis, `size` of them from `first` on.
    pub(super) fn slice(&self, axis: usize, first: Size, size: Size, step: usize) -> Option<Self> {
        let atoms = self.axes.get(axis)?;
        if product(atoms)? == size && step == 1 {
            return Some(self.clone());
        }
        let (first, count) = (fixed(first)?, fixed(size)?);
        let mut axes = self.axes.clone();
        let mut start = self.start;
        let last = self.dims.len().checked_sub(1)?;
        let cut = axes.get_mut(axis)?;
        match atoms.as_slice() {
            [Atom { dim: None, .. }] if step == 1 => {}
            &[atom] if atom.dim == Some(last) => {
                start = start.checked_add(first.checked_mul(atom.stride)?)?;
            }
            _ => return None,
        }
        let atom = cut.first_mut()?;
        atom.stride = atom.stride.checked_mul(step)?;
        atom.size = [count; PROBES];
        Some(Self {
            start,
            ..self.with(axes)
        })
    }

    /// Element `at` of an axis, which goes away.
    pub(super) fn pick(&self, axis: usize, at: usize) -> Option<Self> {
        let one = match self.axes.get(axis)?.is_empty() && at == 0 {
            true => self.clone(),
            false => self.slice(axis, [at; PROBES], ONE, 1)?,
        };
        let mut axes = one.axes.clone();
        axes.remove(axis);
        Some(one.with(axes))
    }

    /// Repeats each element of an axis so often.
    pub(super) fn repeat(&self, axis: usize, times: usize) -> Option<Self> {
        let mut axes = self.axes.clone();
        axes.get_mut(axis)?.push(Atom {
            dim: None,
            stride: 0,
            size: [times; PROBES],
        });
        Some(self.with(axes))
    }

    /// The columns of the last dimension that it covers, without gaps: first and number.
    pub(super) fn columns(&self) -> Option<(usize, usize)> {
        let last = self.dims.len().checked_sub(1)?;
        let own = self.axes.iter().flatten().filter(|a| a.dim == Some(last));
        let mut runs: Vec<(usize, usize)> = own
            .map(|a| Some((a.stride, fixed(a.size)?)))
            .collect::<Option<_>>()?;
        runs.sort_unstable();
        let mut width = 1usize;
        for (stride, size) in runs {
            if stride != width {
                return None;
            }
            width = width.checked_mul(size)?;
        }
        Some((self.start, width))
    }

    /// Whether every dimension but the last is covered whole.
    pub(super) fn covers_rows(&self) -> bool {
        let Some(last) = self.dims.len().checked_sub(1) else {
            return true;
        };
        let whole = |(dim, &size): (usize, &Size)| {
            let own = self.axes.iter().flatten().filter(|a| a.dim == Some(dim));
            let own: Vec<Atom> = own.copied().collect();
            size == ONE || matches!(own.as_slice(), [a] if a.stride == 1 && a.size == size)
        };
        self.dims.iter().take(last).enumerate().all(whole)
    }

    /// Whether the last axis is the whole last dimension, in order.
    pub(super) fn keeps_columns(&self) -> bool {
        let (Some(axis), Some(&width)) = (self.axes.last(), self.dims.last()) else {
            return false;
        };
        let last = self.dims.len().saturating_sub(1);
        let full = Atom {
            dim: Some(last),
            stride: 1,
            size: width,
        };
        self.start == 0 && (axis.as_slice() == [full] || (axis.is_empty() && width == ONE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> View {
        let source = Source::New(0);
        View::whole(source, vec![[2, 3], [7, 11], [64, 64]])
    }

    #[test]
    fn heads_and_back_are_whole() {
        let heads = base()
            .reshape(&[[2, 3], [7, 11], [8, 8], [8, 8]])
            .expect("splits");
        let turned = heads.transpose(&[0, 2, 1, 3]).expect("turns");
        let back = turned.transpose(&[0, 2, 1, 3]).expect("turns");
        let flat = back.reshape(&[[2, 3], [7, 11], [64, 64]]).expect("joins");
        assert!(flat.is_whole());
        assert!(turned.reshape(&[[2, 3], [7, 11], [64, 64]]).is_none());
    }

    #[test]
    fn slices_know_their_columns() {
        let third = base().slice(2, [16, 16], [32, 32], 1).expect("cuts");
        assert_eq!(third.columns(), Some((16, 32)));
        let pairs = base()
            .reshape(&[[2, 3], [7, 11], [32, 32], [2, 2]])
            .expect("splits");
        let odd = pairs.pick(3, 1).expect("picks");
        assert_eq!(odd.columns(), None);
    }
}
