//! SPIRE's Delegated Identity API, over the agent's admin socket: what the agent would give to a
//! workload that these selectors describe.

use rustls_pki_types::CertificateDer;
use tonic::Streaming;
use zeroize::Zeroizing;

use super::offer::{Offer, Offered, bundle};
use super::{Denial, LARGEST_MESSAGE, Others, refusal};
use crate::grpc::Channel;
use crate::grpc::spire_delegated::delegated_identity_client::DelegatedIdentityClient;
use crate::grpc::spire_delegated::{
    Selector, SubscribeToX509BundlesRequest, SubscribeToX509BundlesResponse,
    SubscribeToX509sviDsRequest, SubscribeToX509sviDsResponse,
};

pub(super) type SvidStream = Streaming<SubscribeToX509sviDsResponse>;
pub(super) type BundleStream = Streaming<SubscribeToX509BundlesResponse>;

fn client(channel: Channel) -> DelegatedIdentityClient<Channel> {
    DelegatedIdentityClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE)
}

pub(super) async fn subscribe(
    channel: Channel,
    selectors: Vec<Selector>,
) -> Result<SvidStream, Denial> {
    let request = SubscribeToX509sviDsRequest { selectors };
    let response = client(channel).subscribe_to_x509svi_ds(request).await;
    Ok(response.map_err(|status| refusal(&status))?.into_inner())
}

pub(super) async fn subscribe_to_bundles(channel: Channel) -> Result<BundleStream, Denial> {
    let request = SubscribeToX509BundlesRequest {};
    let response = client(channel).subscribe_to_x509_bundles(request).await;
    Ok(response.map_err(|status| refusal(&status))?.into_inner())
}

/// Everything for these selectors now.
pub(super) async fn fetch(channel: Channel, selectors: Vec<Selector>) -> Result<Offer, Denial> {
    let mut bundles = subscribe_to_bundles(channel.clone()).await?;
    let (others, problems) = next_bundles(&mut bundles).await?;
    let mut stream = subscribe(channel, selectors).await?;
    let (mut offer, _) = next(&mut stream, &others).await?;
    offer.problems.extend(problems);
    Ok(offer)
}

/// All trust domains, the own one too, and what could not be read.
pub(super) async fn next_bundles(
    stream: &mut BundleStream,
) -> Result<(Others, Vec<String>), Denial> {
    let message = stream.message().await.map_err(|status| refusal(&status))?;
    let message = message.ok_or_else(|| "it ended the stream of bundles".to_owned())?;
    let mut read = Offer::default();
    for (domain, der) in &message.ca_certificates {
        read.add_bundle(domain, der);
    }
    Ok((read.others, read.problems))
}

/// SVIDs with their bundles out of `bundles`, and the trust domains to federate with.
pub(super) async fn next(
    stream: &mut SvidStream,
    bundles: &Others,
) -> Result<(Offer, Vec<String>), Denial> {
    let message = stream.message().await.map_err(|status| refusal(&status))?;
    let mut message = message.ok_or_else(|| "it ended the stream".to_owned())?;
    let mut offer = Offer::default();
    for with_key in &mut message.x509_svids {
        let key = Zeroizing::new(std::mem::take(&mut with_key.x509_svid_key));
        let svid = with_key.x509_svid.take().unwrap_or_default();
        let id = svid.id.unwrap_or_default();
        let called = format!("spiffe://{}{}", id.trust_domain, id.path);
        let chain: Vec<CertificateDer<'static>> =
            svid.cert_chain.into_iter().map(CertificateDer::from).collect();
        let own = bundle(&id.trust_domain, &[]).map(|it| it.trust_domain);
        let anchors = own.ok().and_then(|own| bundles.get(&own)).map(|own| own.anchors.clone());
        offer.add(&called, Offered::new(chain, key, anchors.unwrap_or_default()));
    }
    Ok((offer, std::mem::take(&mut message.federates_with)))
}
