//! Matrices and terms in a few words.

use crate::ir::{LowRankTerm, Matrix, Module, Term, Weight};

/// The terms of a matrix in short: `low_rank r64 + sparse 0.5% + int4 g32`.
pub fn terms(module: &Module, matrix: &Matrix) -> String {
    let parts: Vec<String> = matrix
        .terms
        .iter()
        .map(|term| self::term(module, matrix, term))
        .collect();
    if parts.is_empty() {
        "zero".into()
    } else {
        parts.join(" + ")
    }
}

/// One term in short.
pub fn term(module: &Module, matrix: &Matrix, term: &Term) -> String {
    let share = |entries: u64| percent(entries as f64 / (matrix.entries() as f64).max(1.0));
    match term {
        Term::Dense(view) => {
            let dtype = module
                .weight(view.weight)
                .map_or_else(String::new, |w: &Weight| w.dtype.to_string());
            format!("dense {dtype}")
        }
        Term::Quant(quant) => {
            let kind = if quant.scheme.symmetric { "" } else { " asym" };
            let group = quant.group.to_string();
            let group = if group.starts_with(|c: char| c.is_ascii_digit()) {
                format!("g{group}")
            } else {
                group
            };
            format!("int{}{kind} {group}", quant.scheme.bits)
        }
        Term::Trellis(trellis) => {
            let codes = module.weight(trellis.codes).map_or(0, Weight::bytes);
            let bits = bits_per_weight(codes, matrix.entries());
            format!("trellis {bits:.2} 2^{}", trellis.states)
        }
        Term::LowRank(low_rank) => format!("low_rank {}", ranks(low_rank)),
        Term::Sparse(sparse) => format!("sparse {}", share(sparse.nnz)),
        Term::Columns(columns) => format!("columns {}", columns.count),
        Term::Custom(custom) => {
            let bytes = term.bytes(matrix, &module.weights);
            let bits = bits_per_weight(bytes, matrix.entries());
            format!("{} {bits:.2}", custom.kind)
        }
    }
}

fn ranks(term: &LowRankTerm) -> String {
    let ranks = term.blocks.iter().map(|block| block.rank);
    match (ranks.clone().min(), ranks.max(), term.blocks.len()) {
        (Some(rank), _, 1) => format!("r{rank}"),
        (Some(low), Some(high), count) if low == high => format!("{count} blocks r{low}"),
        (Some(low), Some(high), count) => format!("{count} blocks r{low}..{high}"),
        _ => "r0".into(),
    }
}

/// A share in percent with two figures that count.
pub fn percent(share: f64) -> String {
    let value = share * 100.0;
    if value == 0.0 {
        return "0%".into();
    }
    let digits = (1.0 - value.abs().log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.digits$}%")
}

/// Bits per weight of a matrix: all bytes of all terms.
pub fn bits_per_weight(bytes: u64, entries: u64) -> f64 {
    bytes as f64 * 8.0 / (entries as f64).max(1.0)
}
