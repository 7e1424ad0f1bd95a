//! Compiles the plugin, which is C, and keeps its one symbol in the library.

fn main() {
    println!("cargo::rerun-if-changed=src/row_scale.c");
    println!("cargo::rerun-if-changed=../../sdk/include/hlrc_pass.h");
    cc::Build::new()
        .file("src/row_scale.c")
        .include("../../sdk/include")
        .std("c11")
        .warnings_into_errors(true)
        .compile("row_scale_c");
}
