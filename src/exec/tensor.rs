//! Tensors that ops compute with: row-major, in memory.

use super::ExecError;

/// A tensor: entries in row-major order.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// The entries.
    pub data: Data,
}

/// Entries of a tensor. Narrower types are widened when they come in.
#[derive(Clone, Debug, PartialEq)]
pub enum Data {
    /// Activations.
    F32(Vec<f32>),
    /// Token ids, positions, masks, shapes.
    I64(Vec<i64>),
    /// Conditions.
    Bool(Vec<bool>),
}

impl Tensor {
    /// A tensor of floats.
    pub fn f32(shape: &[usize], data: Vec<f32>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::F32(data),
        }
    }

    /// A tensor of integers.
    pub fn i64(shape: &[usize], data: Vec<i64>) -> Self {
        Self {
            shape: shape.to_vec(),
            data: Data::I64(data),
        }
    }

    /// Number of entries that the shape asks for.
    pub fn count(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of entries that are there.
    pub fn len(&self) -> usize {
        match &self.data {
            Data::F32(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of the last axis; 1 for a scalar.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of all axes but the last.
    pub fn rows(&self) -> usize {
        let outer = self.shape.len().saturating_sub(1);
        self.shape.iter().take(outer).product()
    }

    /// The floats, if these are floats.
    pub fn floats(&self) -> Option<&[f32]> {
        match &self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The integers, if these are integers.
    pub fn integers(&self) -> Option<&[i64]> {
        match &self.data {
            Data::I64(v) => Some(v),
            _ => None,
        }
    }

    /// The name of the element type, for messages.
    pub fn type_name(&self) -> &'static str {
        match self.data {
            Data::F32(_) => "f32",
            Data::I64(_) => "i64",
            Data::Bool(_) => "bool",
        }
    }

    /// Checks an input that a caller gives.
    pub(super) fn check(&self, name: &str) -> Result<(), ExecError> {
        let product = self.shape.iter().try_fold(1usize, |a, &b| a.checked_mul(b));
        if product == Some(self.len()) {
            return Ok(());
        }
        Err(ExecError::Input {
            name: name.to_string(),
            problem: format!(
                "shape {:?} does not hold {} entries",
                self.shape,
                self.len()
            ),
        })
    }
}

/// Buffers that finished values leave behind for new ones.
#[derive(Default)]
pub(super) struct Buffers {
    free: Vec<Vec<f32>>,
}

impl Buffers {
    /// A buffer of `len` floats with any contents.
    ///
    /// One that had the length before is best: nothing of it needs to be written.
    pub(super) fn take(&mut self, len: usize) -> Vec<f32> {
        let fits = |(i, b): (usize, &Vec<f32>)| {
            let fits = b.capacity() >= len;
            fits.then(|| (b.len() != len, b.capacity(), i))
        };
        let best = self.free.iter().enumerate().filter_map(fits).min();
        let mut buffer = match best {
            Some((_, _, i)) => self.free.swap_remove(i),
            None => self.free.pop().unwrap_or_default(),
        };
        buffer.resize(len, 0.0);
        buffer
    }

    /// Takes a value's buffer back.
    pub(super) fn give(&mut self, tensor: Tensor) {
        if let Data::F32(buffer) = tensor.data {
            self.give_floats(buffer);
        }
    }

    /// Drops the largest buffers until all hold at most `values`.
    pub(super) fn shrink(&mut self, values: usize) {
        self.free.sort_by_key(Vec::capacity);
        let held = |free: &[Vec<f32>]| free.iter().map(Vec::capacity).sum::<usize>();
        while held(&self.free) > values {
            self.free.pop();
        }
    }

    /// Takes a buffer back.
    pub(super) fn give_floats(&mut self, buffer: Vec<f32>) {
        if self.free.len() < 32 {
            self.free.push(buffer);
        }
    }
}
