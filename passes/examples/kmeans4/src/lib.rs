//! A plugin with a kind of term of its own: a codebook of 16 values for each row.

mod codebook;
mod kmeans4;

hlrc_pass::plugin!(kmeans4::ENTRY; terms: &codebook::Codebook);
