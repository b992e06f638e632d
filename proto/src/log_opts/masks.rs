//! The masks that the option `mask` names.

/// Names of `mask`.
pub const MASKS: &[&str] = &[
    "cn-mobile",
    "cn-id",
    "bank-card",
    "bearer",
    "tencent-key",
    "email",
];
