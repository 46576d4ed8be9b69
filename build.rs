//! Three things at build time: the types of `<openssl/ssl.h>` for Rust (bindgen), the soname of the library, and the
//! header for C (cbindgen), which `make header` copies from OUT_DIR to include/.

#[path = "tools/header.rs"]
mod header;

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=tools/header.rs");
    println!("cargo:rerun-if-changed=src/libssl/wrapper.h");
    println!("cargo:rerun-if-changed=cbindgen.toml");
    println!("cargo:rerun-if-changed=src/abi");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libreprise.so.0");
    // A library whose code runs in exit handlers and in hooks of live contexts must not be unloaded.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    // Rust's unwinder comes from a shared library, which every program under a preload would have to load: where the
    // linker looks for it, it finds the static one.
    fs::write(out.join("libgcc_s.so"), "GROUP(libgcc_eh.a libgcc.a)\n").expect("OUT_DIR is writable");
    println!("cargo:rustc-link-search=native={}", out.display());
    bindgen::Builder::default()
        .header("src/libssl/wrapper.h")
        .allowlist_type("SSL|SSL_CTX|SSL_SESSION|SSL_METHOD|SSL_CIPHER|X509|X509_STORE_CTX|ERR_STRING_DATA")
        .default_enum_style(bindgen::EnumVariation::Consts)
        .opaque_type("ssl_st|ssl_ctx_st|ssl_session_st|ssl_method_st|ssl_cipher_st|x509_st|x509_store_ctx_st")
        .allowlist_type("reprise_constants")
        .allowlist_var("SSL_CTRL_.*SESS.*|SSL_SESS_CACHE_.*|SSL_SESSION_CACHE_MAX_SIZE_DEFAULT")
        .allowlist_var("TLS1_2_VERSION|TLS1_3_VERSION|SSL_MAX_SSL_SESSION_ID_LENGTH")
        .prepend_enum_name(false)
        .layout_tests(false)
        .generate_comments(false)
        .generate()
        .expect("bindgen needs <openssl/ssl.h> and libclang: apt-get install libssl-dev libclang-dev")
        .write_to_file(out.join("openssl.rs"))
        .expect("OUT_DIR is writable");

    let root = env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    let mut files: Vec<_> =
        fs::read_dir("src/abi").expect("src/abi is there").flatten().map(|file| file.path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "rs") && !file.ends_with("mod.rs"));
    files.sort();
    let builder = cbindgen::Builder::new().with_config(cbindgen::Config::from_root_or_default(&root));
    // The border alone: constants of other rooms are nobody's business.
    let builder = files.iter().fold(builder, |builder, file| builder.with_src(file));
    let mut text = Vec::new();
    builder.generate().expect("cbindgen reads src/abi").write(&mut text);
    let text = String::from_utf8(text).expect("cbindgen writes UTF-8");
    let text = header::finish(&text, env!("CARGO_PKG_VERSION"));
    fs::write(out.join("reprise.h"), text).expect("OUT_DIR is writable");
}
