//! The intermediate representation: plain data in flat arenas.
//!
//! A [`Module`] owns [`Weight`]s and [`Graph`]s; a graph owns its [`Value`]s and [`Op`]s, and its
//! [`Region`]s say which ops run in which order. Nothing here reads a file or knows a file format.
//! [`text`] prints and parses modules, [`verify`] lists and checks the invariants, [`patch`] changes
//! a module and checks it before and after.

mod attr;
mod grad;
mod graph;
mod ids;
mod op;
pub mod patch;
pub mod shapes;
pub mod site;
mod term;
pub mod text;
mod types;
pub mod verify;
mod weight;

pub use attr::{Attr, Attrs, Float};
pub use grad::{Grad, GradKind, Part, Training};
pub use graph::{Graph, Module, OpRef, Region, Value};
pub use ids::{OpId, ValueId, WeightId};
pub use op::{
    Activation, Embedding, Layout, Linear, Moe, Native, OnnxOp, Op, OpKind, Operand, Role,
    RopeScaling,
};
pub use term::{
    ColumnsTerm, CustomTerm, FactorRef, LowRankTerm, Matrix, QuantTerm, Rotation, SparseTerm, Term,
    TrellisTerm, WeightView, is_custom_kind, is_word,
};
pub use types::{Dim, TensorType, Type};
pub use weight::{Encoding, Gain, Rotated, Storage, Synthetic, Turn, Weight};
