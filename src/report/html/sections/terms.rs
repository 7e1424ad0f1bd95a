//! What the words of the page mean.

use crate::report::html::markup::{escape, section};

const TERMS: [(&str, &str); 10] = [
    (
        "bits per weight",
        "8 × bytes stored / parameters of the source. Codes, scales, factors, values and positions are all counted.",
    ),
    (
        "relative error",
        "‖W − Σ terms‖ / ‖W‖ in the Frobenius norm: how far what is stored is from the source, in parts of its size. It \
         does not know which weights matter; KL divergence does.",
    ),
    (
        "low-rank factors",
        "W ≈ U V with r columns in U: cheap where singular values fall quickly.",
    ),
    (
        "outliers",
        "Single entries or columns kept in f16 beside the codes, because one large value widens the steps of its whole \
         group.",
    ),
    (
        "codes and scales",
        "Quantized weights: small integers, and the size of a step for each group of them.",
    ),
    (
        "perplexity",
        "e to the mean of −ln p(token): between how many tokens the model hesitates. It depends on the text and the \
         protocol, so compare only within one.",
    ),
    (
        "KL divergence",
        "Σ p ln(p / q) over the vocabulary, p the original's prediction and q this model's, nats per token. 0 is the same \
         prediction; below 0.01 is hardly to be told from the original, above 0.1 is clearly worse.",
    ),
    (
        "same likeliest token",
        "Share of positions where both models would choose the same token if they were greedy.",
    ),
    (
        "singular values, energy",
        "W is a sum of rank-one matrices of falling size. The energy of the first r is the share of ‖W‖² that they hold.",
    ),
    (
        "head, embedding",
        "The tables between tokens and vectors; tied where they are one. Left alone unless the pipeline names them.",
    ),
];

/// The section.
pub fn render() -> String {
    let mut body = String::from("<dl>\n");
    for (term, meaning) in TERMS {
        body.push_str(&format!(
            "<dt>{}</dt><dd>{}</dd>\n",
            escape(term),
            escape(meaning)
        ));
    }
    body.push_str("</dl>\n");
    section("terms", "What the words mean", "", &body)
}
