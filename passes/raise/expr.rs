//! Expressions over views, in a form that does not depend on how an exporter spells them.
//!
//! A sum is a number and terms, a product a factor and powers: `x / sqrt(m)`, `x · (1 / sqrt(m))`
//! and `x · rsqrt(m)` are one expression.

use super::hadamard::Walsh;
use super::rope::{Half, Partial};
use super::scores::Scores;
use super::view::View;
use crate::ir::Operand;

/// Functions of one number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Erf,
    Tanh,
    Sigmoid,
    Exp,
    Relu,
}

/// What a value is, in terms of others.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Expr {
    /// Elements of a value.
    Leaf(View),
    /// A value that does not depend on activations.
    Side(Operand),
    /// A number.
    Number(f64),
    /// A number and terms.
    Sum(f64, Vec<Expr>),
    /// A factor and powers.
    Product(f64, Vec<(Expr, f64)>),
    /// Mean over the last axis, which stays.
    Mean(Box<Expr>),
    /// A function of each element.
    Call(Function, Box<Expr>),
    /// A view with each pair (a, b) turned to (−b, a); pairs are halves, or neighbours.
    Turned(View, bool),
    /// Walsh–Hadamard blocks of a view, which signs over the norm may follow.
    Walsh(Box<Walsh>),
    /// One of the two results of a rotation.
    Half(Box<Half>),
    /// A rotation of a part of each head.
    Partial(Box<Partial>),
    /// q·kᵀ, scaled and masked.
    Scores(Box<Scores>),
    /// Softmax of scores.
    Chances(Box<Scores>),
}

impl Expr {
    /// `a + b`
    pub(super) fn plus(self, other: Expr) -> Expr {
        let (mut constant, mut terms) = self.into_sum();
        let (more, others) = other.into_sum();
        constant += more;
        terms.extend(others);
        match (constant, terms.len()) {
            (c, 0) => Expr::Number(c),
            (0.0, 1) => terms.remove(0),
            _ => Expr::Sum(constant, terms),
        }
    }

    fn into_sum(self) -> (f64, Vec<Expr>) {
        match self {
            Expr::Number(n) => (n, Vec::new()),
            Expr::Sum(constant, terms) => (constant, terms),
            other => (0.0, vec![other]),
        }
    }

    /// `a · b`
    pub(super) fn times(self, other: Expr) -> Expr {
        let (mut factor, mut powers) = self.into_product();
        let (more, others) = other.into_product();
        factor *= more;
        for (base, power) in others {
            match powers.iter_mut().find(|(known, _)| *known == base) {
                Some((_, sum)) => *sum += power,
                None => powers.push((base, power)),
            }
        }
        powers.retain(|(_, power)| *power != 0.0);
        Expr::product(factor, powers)
    }

    fn product(factor: f64, mut powers: Vec<(Expr, f64)>) -> Expr {
        match powers.as_slice() {
            [] => Expr::Number(factor),
            [(_, 1.0)] if factor == 1.0 => powers.remove(0).0,
            _ => Expr::Product(factor, powers),
        }
    }

    /// The factor and the powers of a product.
    pub(super) fn into_product(self) -> (f64, Vec<(Expr, f64)>) {
        match self {
            Expr::Number(n) => (n, Vec::new()),
            Expr::Product(factor, powers) => (factor, powers),
            other => (1.0, vec![(other, 1.0)]),
        }
    }

    /// `a ^ n`
    pub(super) fn power(self, n: f64) -> Expr {
        match self {
            Expr::Number(x) => Expr::Number(x.powf(n)),
            // Powers of powers multiply where no sign is lost.
            Expr::Product(factor, powers)
                if n.fract() == 0.0
                    || (factor > 0.0 && powers.iter().all(|(_, p)| p.fract() != 0.0)) =>
            {
                let powers = powers.into_iter().map(|(base, p)| (base, p * n));
                Expr::product(factor.powf(n), powers.collect())
            }
            other => Expr::product(1.0, vec![(other, n)]),
        }
    }

    /// `−a`
    pub(super) fn negated(self) -> Expr {
        self.times(Expr::Number(-1.0))
    }

    /// A factor and what it multiplies.
    pub(super) fn scaled(&self) -> (f64, Expr) {
        match self.clone() {
            Expr::Product(factor, powers) => (factor, Expr::product(1.0, powers)),
            other => (1.0, other),
        }
    }

    /// The view, where this is nothing else.
    pub(super) fn view(&self) -> Option<&View> {
        match self {
            Expr::Leaf(view) => Some(view),
            _ => None,
        }
    }

    /// A factor and the view that it multiplies.
    pub(super) fn scaled_view(&self) -> Option<(f64, View)> {
        match self.scaled() {
            (factor, Expr::Leaf(view)) => Some((factor, view)),
            _ => None,
        }
    }

    /// The same with its view changed, where it has one.
    pub(super) fn map_view(&self, change: impl Fn(&View) -> Option<View>) -> Option<Expr> {
        match self {
            Expr::Leaf(view) => Some(Expr::Leaf(change(view)?)),
            Expr::Turned(view, pairs) => Some(Expr::Turned(change(view)?, *pairs)),
            Expr::Walsh(walsh) => Some(Expr::Walsh(Box::new(Walsh {
                view: change(&walsh.view)?,
                plain: change(&walsh.plain)?,
                ..**walsh
            }))),
            Expr::Half(half) => Some(Expr::Half(Box::new(Half {
                a: change(&half.a)?,
                b: change(&half.b)?,
                ..(**half).clone()
            }))),
            Expr::Partial(part) => Some(Expr::Partial(Box::new(Partial {
                view: change(&part.view)?,
                ..(**part).clone()
            }))),
            Expr::Product(factor, powers) => match powers.as_slice() {
                [(Expr::Leaf(view), 1.0)] => Some(Expr::product(
                    *factor,
                    vec![(Expr::Leaf(change(view)?), 1.0)],
                )),
                _ => None,
            },
            _ => None,
        }
    }

    /// The view that this is a function of, element by element.
    pub(super) fn argument(&self) -> Option<&View> {
        match self {
            Expr::Leaf(view) => Some(view),
            Expr::Sum(_, terms) => shared(terms.iter().map(Expr::argument)),
            Expr::Product(_, powers) => shared(powers.iter().map(|(e, _)| e.argument())),
            Expr::Call(_, inner) => inner.argument(),
            _ => None,
        }
    }

    /// Its value where every leaf is `x`.
    pub(super) fn at(&self, x: f64) -> f64 {
        match self {
            Expr::Leaf(_) => x,
            Expr::Number(n) => *n,
            Expr::Sum(constant, terms) => constant + terms.iter().map(|t| t.at(x)).sum::<f64>(),
            Expr::Product(factor, powers) => {
                let product: f64 = powers.iter().map(|(e, p)| e.at(x).powf(*p)).product();
                factor * product
            }
            Expr::Call(function, inner) => function.of(inner.at(x)),
            _ => f64::NAN,
        }
    }
}

/// The one view that all are.
fn shared<'a>(mut views: impl Iterator<Item = Option<&'a View>>) -> Option<&'a View> {
    let first = views.next()??;
    views.all(|view| view == Some(first)).then_some(first)
}

impl Function {
    fn of(self, x: f64) -> f64 {
        match self {
            Function::Erf => erf(x),
            Function::Tanh => x.tanh(),
            Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            Function::Exp => x.exp(),
            Function::Relu => x.max(0.0),
        }
    }
}

/// The error function, by its series; for the arguments that tell functions apart.
pub(super) fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..120 {
        let n = f64::from(n);
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}
