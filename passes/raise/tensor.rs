//! Small tensors of numbers, for what a graph computes besides activations.

use std::rc::Rc;

use crate::weights::DType;

/// Elements of the largest tensor whose numbers are followed; beyond, its shape is.
pub(super) const MAX_ELEMENTS: usize = 1 << 22;

/// Axes of the largest rank that is followed.
pub(super) const MAX_RANK: usize = 64;

/// A tensor at one probe; without data where it depends on activations.
///
/// All numbers are f64: integers up to 2^53 are exact, and those beyond only ever bound slices.
#[derive(Clone, Debug)]
pub(super) struct Tensor {
    pub(super) dtype: DType,
    pub(super) shape: Vec<usize>,
    pub(super) data: Option<Rc<Vec<f64>>>,
}

/// Number of elements, unless it is absurd.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
    (count < 1 << 40).then_some(count)
}

/// Row-major strides.
pub(super) fn strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1isize; shape.len()];
    let mut step = 1isize;
    for (stride, &dim) in strides.iter_mut().zip(shape).rev() {
        *stride = step;
        step = step.saturating_mul(dim as isize);
    }
    strides
}

impl Tensor {
    /// A tensor of unknown numbers.
    pub(super) fn shaped(dtype: DType, shape: Vec<usize>) -> Self {
        Self {
            dtype,
            shape,
            data: None,
        }
    }

    /// A tensor of these numbers, as many as the shape says.
    pub(super) fn new(dtype: DType, shape: Vec<usize>, data: Vec<f64>) -> Self {
        let fits = count(&shape) == Some(data.len());
        let data = (fits && data.len() <= MAX_ELEMENTS).then(|| Rc::new(data));
        Self { dtype, shape, data }
    }

    /// A vector of integers.
    pub(super) fn ints(values: Vec<f64>) -> Self {
        Self::new(DType::I64, vec![values.len()], values)
    }

    pub(super) fn rank(&self) -> usize {
        self.shape.len()
    }

    /// The numbers, if they are known.
    pub(super) fn values(&self) -> Option<&[f64]> {
        self.data.as_ref().map(|data| data.as_slice())
    }

    /// The numbers as integers.
    pub(super) fn integers(&self) -> Option<Vec<i64>> {
        Some(self.values()?.iter().map(|&x| x as i64).collect())
    }

    /// The only number.
    pub(super) fn number(&self) -> Option<f64> {
        match self.values()? {
            [x] => Some(*x),
            _ => None,
        }
    }

    /// An axis, counted from the end where it is negative.
    pub(super) fn axis(&self, axis: i64) -> Option<usize> {
        axis_of(axis, self.rank())
    }

    /// Elements at `start + Σ index · stride` of the row-major data, as a tensor of this shape.
    pub(super) fn strided(&self, shape: Vec<usize>, start: isize, steps: &[isize]) -> Option<Self> {
        let total = count(&shape)?;
        let (Some(data), true) = (self.values(), total <= MAX_ELEMENTS) else {
            return Some(Self::shaped(self.dtype, shape));
        };
        let mut out = Vec::with_capacity(total);
        let mut index = vec![0usize; shape.len()];
        let mut at = start;
        for _ in 0..total {
            out.push(*data.get(usize::try_from(at).ok()?)?);
            for ((slot, &size), &step) in index.iter_mut().zip(&shape).zip(steps).rev() {
                *slot += 1;
                at += step;
                if *slot < size {
                    break;
                }
                at -= step * size as isize;
                *slot = 0;
            }
        }
        Some(Self::new(self.dtype, shape, out))
    }

    /// The tensor broadcast to a shape.
    pub(super) fn broadcast(&self, shape: &[usize]) -> Option<Self> {
        let lead = shape.len().checked_sub(self.rank())?;
        let own = strides(&self.shape);
        let mut steps = vec![0isize; lead];
        for ((&dim, &step), &wanted) in self.shape.iter().zip(&own).zip(shape.iter().skip(lead)) {
            match dim {
                d if d == wanted => steps.push(step),
                1 => steps.push(0),
                _ => return None,
            }
        }
        self.strided(shape.to_vec(), 0, &steps)
    }

    /// The same numbers in another shape.
    pub(super) fn reshaped(&self, shape: Vec<usize>) -> Option<Self> {
        (count(&shape)? == count(&self.shape)?).then(|| Self {
            dtype: self.dtype,
            shape,
            data: self.data.clone(),
        })
    }

    /// Elements `at[i]` along an axis, whose place in the shape `dims` takes.
    pub(super) fn take(&self, axis: usize, at: &[i64], dims: &[usize]) -> Option<Self> {
        let size = *self.shape.get(axis)?;
        let outer: usize = count(self.shape.get(..axis)?)?;
        let inner: usize = count(self.shape.get(axis + 1..)?)?;
        let mut shape = self.shape.get(..axis)?.to_vec();
        shape.extend(dims);
        shape.extend(self.shape.get(axis + 1..)?);
        let total = count(&shape)?;
        let some = (1..=MAX_ELEMENTS).contains(&total);
        let (Some(data), true) = (self.values(), some) else {
            return Some(Self::shaped(self.dtype, shape));
        };
        let mut out = Vec::with_capacity(total);
        for block in 0..outer {
            for &index in at {
                let index = axis_of(index, size)?;
                let start = (block * size + index) * inner;
                out.extend(data.get(start..start + inner)?);
            }
        }
        Some(Self::new(self.dtype, shape, out))
    }
}

/// An index, counted from the end where it is negative.
pub(super) fn axis_of(axis: i64, size: usize) -> Option<usize> {
    let size_i = i64::try_from(size).ok()?;
    let axis = if axis < 0 {
        axis.checked_add(size_i)?
    } else {
        axis
    };
    usize::try_from(axis).ok().filter(|a| *a < size)
}

/// The shape that two shapes broadcast to.
pub(super) fn broadcast_shape(a: &[usize], b: &[usize]) -> Option<Vec<usize>> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], at: usize| {
        let lead = rank - shape.len();
        at.checked_sub(lead)
            .and_then(|i| shape.get(i))
            .copied()
            .unwrap_or(1)
    };
    (0..rank)
        .map(|at| match (dim(a, at), dim(b, at)) {
            (x, y) if x == y => Some(x),
            (1, y) => Some(y),
            (x, 1) => Some(x),
            _ => None,
        })
        .collect()
}
