//! All cases in one test binary.
