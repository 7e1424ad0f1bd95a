//! Sizes of dimensions as polynomials over named sizes.

use std::collections::HashMap;

use crate::ir::Dim;

/// Terms of a polynomial, and factors of a term, that are followed; beyond, a size gets a new name.
const MAX_TERMS: usize = 8;
const MAX_DEGREE: usize = 4;

/// Bytes of a size's text; what is longer gets a new name, since every value would repeat it.
const MAX_TEXT: usize = 200;

/// A sum of products of named sizes: `2*S + past + 1`. Names stand for sizes, which are not
/// negative; the whole may be, as an element of a tensor of integers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Size(Vec<(Vec<u32>, i64)>);

impl Size {
    /// A constant.
    pub(super) fn of(value: i64) -> Self {
        match value {
            0 => Self::default(),
            _ => Self(vec![(Vec::new(), value)]),
        }
    }

    fn atom(atom: u32) -> Self {
        Self(vec![(vec![atom], 1)])
    }

    /// The value, if it is a constant.
    pub(super) fn known(&self) -> Option<i64> {
        match self.0.as_slice() {
            [] => Some(0),
            [(factors, value)] if factors.is_empty() => Some(*value),
            _ => None,
        }
    }

    /// Whether it is this constant.
    pub(super) fn is(&self, value: i64) -> bool {
        self.known() == Some(value)
    }

    /// Whether no sizes make it negative, as far as its signs tell.
    pub(super) fn never_negative(&self) -> bool {
        self.0.iter().all(|(_, factor)| *factor >= 0)
    }

    /// Whether it is surely another number than `other`.
    pub(super) fn differs(&self, other: &Size) -> Option<bool> {
        let gap = self.minus(other)?;
        if let Some(gap) = gap.known() {
            return Some(gap != 0);
        }
        // The gap is at least its constant part where all signs agree.
        let one = |factors: &[u32]| factors.is_empty();
        let apart = |sign: i64| {
            let agree = gap.0.iter().all(|(_, k)| k.signum() == sign);
            agree && gap.0.iter().any(|(factors, _)| one(factors))
        };
        (apart(1) || apart(-1)).then_some(true)
    }

    /// The sum.
    pub(super) fn plus(&self, other: &Size) -> Option<Size> {
        let mut sum = self.0.clone();
        for (factors, value) in &other.0 {
            match sum.binary_search_by(|(f, _)| f.cmp(factors)) {
                Ok(at) => {
                    let slot = sum.get_mut(at)?;
                    slot.1 = slot.1.checked_add(*value)?;
                    if slot.1 == 0 {
                        sum.remove(at);
                    }
                }
                Err(at) => sum.insert(at, (factors.clone(), *value)),
            }
        }
        (sum.len() <= MAX_TERMS).then_some(Size(sum))
    }

    /// The difference.
    pub(super) fn minus(&self, other: &Size) -> Option<Size> {
        self.plus(&other.times(&Size::of(-1))?)
    }

    /// The product.
    pub(super) fn times(&self, other: &Size) -> Option<Size> {
        let mut sum = Size::default();
        for (a, x) in &self.0 {
            for (b, y) in &other.0 {
                let mut factors = [a.as_slice(), b.as_slice()].concat();
                factors.sort_unstable();
                if factors.len() > MAX_DEGREE {
                    return None;
                }
                sum = sum.plus(&Size(vec![(factors, x.checked_mul(*y)?)]))?;
            }
        }
        Some(sum)
    }

    /// The quotient where the division leaves nothing whatever the sizes are (none of them 0).
    pub(super) fn over(&self, other: &Size) -> Option<Size> {
        let [(divisor, by)] = other.0.as_slice() else {
            return (!self.0.is_empty() && self == other).then(|| Size::of(1));
        };
        let mut quotient = Size::default();
        for (factors, value) in &self.0 {
            let mut left = factors.clone();
            for factor in divisor {
                let at = left.iter().position(|f| f == factor)?;
                left.remove(at);
            }
            if value.checked_rem(*by)? != 0 {
                return None;
            }
            quotient = quotient.plus(&Size(vec![(left, value.checked_div(*by)?)]))?;
        }
        Some(quotient)
    }
}

/// The names of sizes, in the order in which they were met.
#[derive(Default)]
pub(super) struct Names {
    names: Vec<String>,
    atoms: HashMap<String, u32>,
    /// How the source writes sums and products.
    texts: HashMap<Size, String>,
    /// Which names stand for the lesser of a size and a positive constant.
    lesser: HashMap<Size, Size>,
    unnamed: usize,
}

impl Names {
    fn intern(&mut self, name: &str) -> Size {
        if let Some(&atom) = self.atoms.get(name) {
            return Size::atom(atom);
        }
        let Ok(atom) = u32::try_from(self.names.len()) else {
            return Size::atom(u32::MAX);
        };
        self.names.push(name.to_owned());
        self.atoms.insert(name.to_owned(), atom);
        Size::atom(atom)
    }

    /// A size that nothing is known of.
    pub(super) fn unnamed(&mut self) -> Size {
        self.unnamed += 1;
        self.intern(&format!("?{}", self.unnamed))
    }

    /// `size`, or a new name where there is none or it is negative.
    pub(super) fn or_unnamed(&mut self, size: Option<Size>) -> Size {
        match size {
            Some(size) if size.known().is_none_or(|value| value >= 0) => size,
            _ => self.unnamed(),
        }
    }

    /// The size that a type states.
    pub(super) fn stated(&mut self, dim: &Dim) -> Size {
        match dim {
            Dim::Known(value) if *value >= 0 => Size::of(*value),
            Dim::Symbol(text)
                if !text.is_empty() && text.len() <= MAX_TEXT && !text.starts_with('?') =>
            {
                self.expression(text)
            }
            _ => self.unnamed(),
        }
    }

    /// A sum of products of names and numbers; any other text is one name.
    fn expression(&mut self, text: &str) -> Size {
        let plain = |c: char| c.is_alphanumeric() || " _.+*-".contains(c);
        if !text.chars().all(plain) || !text.contains(['+', '*', '-']) {
            return self.intern(text);
        }
        let Some(size) = self.sum(text) else {
            return self.intern(text);
        };
        self.texts
            .entry(size.clone())
            .or_insert_with(|| text.to_owned());
        size
    }

    fn sum(&mut self, text: &str) -> Option<Size> {
        let mut total = Size::default();
        for added in text.split('+') {
            for (later, part) in added.split('-').enumerate() {
                if part.trim().is_empty() {
                    return None;
                }
                let product = self.product(part)?;
                total = match later {
                    0 => total.plus(&product)?,
                    _ => total.minus(&product)?,
                };
            }
        }
        Some(total)
    }

    fn product(&mut self, text: &str) -> Option<Size> {
        let mut total = Size::of(1);
        for factor in text.split('*').map(str::trim) {
            let name = |c: char| c.is_alphanumeric() || "_.".contains(c);
            let size = match factor.parse::<i64>() {
                Ok(value) => Size::of(value),
                Err(_) if factor.starts_with(|c: char| c.is_ascii_digit()) => return None,
                Err(_) if factor.is_empty() || !factor.chars().all(name) => return None,
                Err(_) => self.intern(factor),
            };
            total = total.times(&size)?;
        }
        Some(total)
    }

    /// The lesser of a size and a constant.
    pub(super) fn lesser(&mut self, size: &Size, limit: i64) -> Size {
        match size.known() {
            Some(value) => Size::of(value.min(limit)),
            None if limit < 1 => self.unnamed(),
            None => {
                let Dim::Symbol(text) = self.dim(size) else {
                    return self.unnamed();
                };
                let name = format!("min({text}, {limit})");
                if name.len() > MAX_TEXT {
                    return self.unnamed();
                }
                let name = self.intern(&name);
                self.lesser.insert(name.clone(), size.clone());
                name
            }
        }
    }

    /// The size of a dimension that two are broadcast to.
    pub(super) fn broadcast(&mut self, a: &Size, b: &Size) -> Size {
        if a == b || b.is(1) {
            return a.clone();
        }
        if a.is(1) {
            return b.clone();
        }
        match (a.known(), b.known()) {
            // What is not one has to be equal, so the constant is what both are.
            (Some(_), None) => return a.clone(),
            (None, Some(_)) => return b.clone(),
            _ => {}
        }
        // min(S, k) goes with S only where it is S, or where both are one.
        if self.lesser.get(a) == Some(b) {
            return b.clone();
        }
        if self.lesser.get(b) == Some(a) {
            return a.clone();
        }
        self.unnamed()
    }

    /// The size as a dimension of a type.
    pub(super) fn dim(&self, size: &Size) -> Dim {
        if let Some(value) = size.known() {
            return match value >= 0 {
                true => Dim::Known(value),
                false => Dim::Unknown,
            };
        }
        if let Some(text) = self.texts.get(size) {
            return Dim::Symbol(text.clone());
        }
        let name = |atom: &u32| self.names.get(*atom as usize).map_or("?", String::as_str);
        let mut text = String::new();
        // Constants come last.
        let (tail, terms): (Vec<_>, Vec<_>) = size.0.iter().partition(|(f, _)| f.is_empty());
        for (factors, value) in terms.into_iter().chain(tail) {
            let sign = if *value < 0 { " - " } else { " + " };
            match (text.is_empty(), *value < 0) {
                (true, true) => text.push('-'),
                (true, false) => {}
                _ => text.push_str(sign),
            }
            let mut parts: Vec<String> = factors.iter().map(|f| name(f).to_owned()).collect();
            if value.unsigned_abs() != 1 || parts.is_empty() {
                parts.insert(0, value.unsigned_abs().to_string());
            }
            text.push_str(&parts.join("*"));
        }
        if text.len() > MAX_TEXT {
            return Dim::Unknown;
        }
        Dim::Symbol(text)
    }

    /// Whether nothing but an invented name is known of the size.
    pub(super) fn is_unnamed(&self, size: &Size) -> bool {
        let name = |atom: &u32| self.names.get(*atom as usize);
        let mut atoms = size.0.iter().flat_map(|(factors, _)| factors);
        atoms.any(|atom| name(atom).is_none_or(|name| name.starts_with('?')))
    }
}
