//! The textual form of the IR: [`print()`] and [`parse()`], inverses of each other.
//!
//! ```text
//! hlir 1
//! module "minilm" meta{format="onnx"} {
//!   weight @wq : f32[384,384] = file("model.onnx", 0x1a2b40, 589824)
//!   graph @main(%ids : i64[B,S]) -> (%y) {
//!     %y = linear %x { dense(@wq) } bias(@bq) name("q") : f32[B,S,384]
//!   }
//! }
//! ```
//!
//! Names made of letters, digits, `_`, `.`, `/` and `$` that don't start with a digit stand bare;
//! others are quoted. `%3` is the value made third of those without a name. Comments run from `//`
//! to the end of the line. `docs/ir.md` has the grammar.

mod cursor;
mod parse;
mod parse_op;
mod parse_storage;
mod parse_term;
mod parse_value;
mod print;
mod print_op;
#[cfg(test)]
mod tests;

pub use parse::{ParseError, parse, parse_type};
pub use print::{PrintOptions, print, print_with, type_text};

/// Version that the first line of a module states.
pub const VERSION: u32 = 1;

/// Whether `name` may stand without quotes after `%` or `@`, or as an attribute's name.
fn is_bare(name: &str) -> bool {
    let mut bytes = name.bytes();
    let start = |b: u8| b.is_ascii_alphabetic() || matches!(b, b'_' | b'/' | b'.' | b'$');
    bytes.next().is_some_and(start) && bytes.all(is_bare_byte) && !name.contains("//")
}

fn is_bare_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'/' | b'.' | b'$')
}
