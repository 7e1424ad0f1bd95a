//! What is known of a value while shapes are inferred.

use std::rc::Rc;

use super::size::{Names, Size};
use crate::ir::{TensorType, Type};
use crate::weights::DType;

/// Elements of integer tensors that are followed.
pub(super) const MAX_ELEMENTS: usize = 512;

/// Dimensions of a tensor that are followed.
pub(super) const MAX_RANK: usize = 64;

/// What is known of a tensor.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fact {
    /// Element type.
    pub(super) dtype: Option<DType>,
    /// Size of every dimension.
    pub(super) shape: Option<Vec<Size>>,
    /// Elements of a small tensor of integers or truth values, as far as they are known.
    pub(super) data: Option<Rc<Vec<Option<Size>>>>,
    /// A type that is no tensor.
    pub(super) other: Option<Type>,
}

impl Fact {
    /// A tensor of this type and shape.
    pub(super) fn new(dtype: Option<DType>, shape: Option<Vec<Size>>) -> Self {
        Self {
            dtype,
            shape,
            ..Self::default()
        }
    }

    /// A tensor of this shape that holds these numbers.
    pub(super) fn with_data(mut self, data: Option<Vec<Option<Size>>>) -> Self {
        let fits = |data: &Vec<Option<Size>>| {
            data.len() <= MAX_ELEMENTS && self.elements() == Some(data.len())
        };
        self.data = data.filter(fits).map(Rc::new);
        self
    }

    /// A scalar or a vector of `i64`.
    pub(super) fn ints(values: Vec<Option<Size>>, scalar: bool) -> Self {
        let shape = match scalar {
            true => Vec::new(),
            false => vec![Size::of(values.len() as i64)],
        };
        Fact::new(Some(DType::I64), Some(shape)).with_data(Some(values))
    }

    /// What a type states.
    pub(super) fn stated(ty: &Type, names: &mut Names) -> Self {
        match ty {
            Type::Tensor(tensor) => {
                let shape = tensor.shape.as_ref();
                let shape = shape.map(|dims| dims.iter().map(|d| names.stated(d)).collect());
                Fact::new(Some(tensor.dtype), shape)
            }
            Type::None => Fact::default(),
            other => Fact {
                other: Some(other.clone()),
                ..Fact::default()
            },
        }
    }

    /// Number of dimensions.
    pub(super) fn rank(&self) -> Option<usize> {
        Some(self.shape.as_ref()?.len())
    }

    /// Number of elements, if it is known and small.
    pub(super) fn elements(&self) -> Option<usize> {
        let shape = self.shape.as_ref()?;
        let count = shape
            .iter()
            .try_fold(1i64, |n, d| n.checked_mul(d.known()?))?;
        usize::try_from(count).ok().filter(|n| *n <= MAX_ELEMENTS)
    }

    /// Elements, all of them known numbers.
    pub(super) fn numbers(&self) -> Option<Vec<i64>> {
        let data = self.data.as_ref()?;
        data.iter().map(|x| x.as_ref()?.known()).collect()
    }

    /// The only element, if it is known.
    pub(super) fn number(&self) -> Option<i64> {
        match self.numbers()?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    /// What holds whichever of the two it is.
    pub(super) fn join(&self, other: &Fact, names: &mut Names) -> Fact {
        let shape = match (&self.shape, &other.shape) {
            (Some(a), Some(b)) if a.len() == b.len() => {
                let pairs = a.iter().zip(b);
                let one = |(x, y): (&Size, &Size)| match x == y {
                    true => x.clone(),
                    false => names.unnamed(),
                };
                Some(pairs.map(one).collect())
            }
            _ => None,
        };
        Fact {
            dtype: self.dtype.filter(|_| self.dtype == other.dtype),
            shape,
            data: self.data.clone().filter(|_| self.data == other.data),
            other: self.other.clone().filter(|_| self.other == other.other),
        }
    }

    /// What inference found, completed by what the source states; where they disagree, nothing.
    pub(super) fn meet(self, stated: Fact, names: &mut Names) -> Fact {
        let dtype = match (self.dtype, stated.dtype) {
            (Some(a), Some(b)) if a != b => None,
            (a, b) => a.or(b),
        };
        let shape = match (self.shape, stated.shape) {
            (Some(a), Some(b)) if a.len() != b.len() => None,
            (Some(a), Some(b)) => {
                let pairs = a.into_iter().zip(b);
                Some(pairs.map(|(x, y)| meet(x, y, names)).collect())
            }
            (a, b) => a.or(b),
        };
        let data = self.data.filter(|_| shape.is_some());
        let other = self.other.or(stated.other);
        Fact {
            dtype,
            shape,
            data,
            other,
        }
    }

    /// The type, if the element type is known.
    pub(super) fn ty(&self, names: &Names) -> Option<Type> {
        if self.other.is_some() {
            return self.other.clone();
        }
        let shape = self.shape.as_ref();
        Some(Type::Tensor(TensorType {
            dtype: self.dtype?,
            shape: shape.map(|sizes| sizes.iter().map(|s| names.dim(s)).collect()),
        }))
    }
}

fn meet(found: Size, stated: Size, names: &mut Names) -> Size {
    match (found.known(), stated.known()) {
        (Some(a), Some(b)) if a != b => names.unnamed(),
        (Some(_), _) => found,
        (None, Some(_)) => stated,
        (None, None) if names.is_unnamed(&found) && !names.is_unnamed(&stated) => stated,
        (None, None) => found,
    }
}
