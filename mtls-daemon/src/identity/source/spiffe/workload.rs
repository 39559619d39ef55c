//! SPIFFE's Workload API.

use tonic::metadata::MetadataValue;
use tonic::{Request, Streaming};
use zeroize::Zeroizing;

use super::offer::{Offer, Offered};
use super::{Denial, LARGEST_MESSAGE, refusal};
use crate::grpc::Channel;
use crate::grpc::spiffe_workload::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::grpc::spiffe_workload::{X509svidRequest, X509svidResponse};
use crate::identity::encoding::certificates_from_der;

/// An agent refuses whoever does not say so: a request that somebody was tricked into has no such
/// header (Workload Endpoint §6).
const HEADER: &str = "workload.spiffe.io";

pub(super) async fn subscribe(channel: Channel) -> Result<Streaming<X509svidResponse>, Denial> {
    let mut request = Request::new(X509svidRequest {});
    request.metadata_mut().insert(HEADER, MetadataValue::from_static("true"));
    let mut client =
        SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let response = client.fetch_x509svid(request).await.map_err(|status| refusal(&status))?;
    Ok(response.into_inner())
}

/// Everything that the agent gives now: each message is whole.
pub(super) async fn fetch(channel: Channel) -> Result<Offer, Denial> {
    let mut stream = subscribe(channel).await?;
    next(&mut stream).await
}

pub(super) async fn next(stream: &mut Streaming<X509svidResponse>) -> Result<Offer, Denial> {
    let message = stream.message().await.map_err(|status| refusal(&status))?;
    Ok(read(message.ok_or_else(|| "it ended the stream".to_owned())?))
}

fn read(mut message: X509svidResponse) -> Offer {
    let mut offer = Offer::default();
    for svid in &mut message.svids {
        // Out of the message before anything can go wrong.
        let key = Zeroizing::new(std::mem::take(&mut svid.x509_svid_key));
        let read = || {
            let chain = certificates_from_der(&svid.x509_svid).map_err(|it| it.to_string())?;
            let bundle = certificates_from_der(&svid.bundle).map_err(|it| it.to_string())?;
            Offered::new(chain, key, bundle)
        };
        offer.add(&svid.spiffe_id, read());
    }
    for (domain, der) in &message.federated_bundles {
        offer.add_bundle(domain, der);
    }
    offer
}
