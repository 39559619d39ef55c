//! Messages that hold private keys, printed without them and wiped when they are dropped.

use std::fmt;

use zeroize::Zeroize;

use super::spiffe_workload::X509svid;
use super::spire_delegated::X509svidWithKey;

impl fmt::Debug for X509svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

impl fmt::Debug for X509svidWithKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("X509svidWithKey")
            .field("x509_svid", &self.x509_svid)
            .finish_non_exhaustive()
    }
}

impl Drop for X509svid {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}

impl Drop for X509svidWithKey {
    fn drop(&mut self) {
        self.x509_svid_key.zeroize();
    }
}
