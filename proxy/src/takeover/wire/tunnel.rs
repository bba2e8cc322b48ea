//! A tunnel as bytes.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::balancer::pool::AffinityOutcome;
use crate::request::forward::ParkedTunnel;
use crate::takeover::wire::{Reader, Writer};
use crate::tls::record::{DirectionState, RecordsState, Role, StreamState};
use crate::tunnel::{
    EndReason, FlowEnd, FlowPhase, FlowState, Protocol, TunnelAge, TunnelInfo, TunnelState,
};

/// A tunnel with more bytes under way stays where it is: it would delay all others.
pub(in crate::takeover) const TUNNEL_MAX: usize = 2 << 20;

/// What everything but texts and buffers takes at most.
const FIXED_MAX: usize = 2048;

/// The longest text: a path of the access log.
const TEXT_MAX: usize = 64 << 10;

/// A tunnel that was read.
pub(in crate::takeover) struct WireTunnel {
    pub(in crate::takeover) pool: String,
    pub(in crate::takeover) backend: String,
    /// Of the backend.
    pub(in crate::takeover) address: String,
    pub(in crate::takeover) client: IpAddr,
    pub(in crate::takeover) arrived: SystemTime,
    pub(in crate::takeover) request_id: Box<str>,
    pub(in crate::takeover) method: Box<str>,
    pub(in crate::takeover) host: Option<Box<str>>,
    pub(in crate::takeover) path: Option<Box<str>>,
    pub(in crate::takeover) affinity: Option<&'static str>,
    pub(in crate::takeover) attempts: Option<u32>,
    pub(in crate::takeover) waited: Option<Duration>,
    pub(in crate::takeover) age: TunnelAge,
    pub(in crate::takeover) request_age: Duration,
    pub(in crate::takeover) permit_sources: [Option<u64>; 2],
    pub(in crate::takeover) state: TunnelState,
}

/// The most bytes that [`write_tunnel`] writes.
pub(in crate::takeover) fn tunnel_size(parked: &dyn ParkedTunnel) -> usize {
    let (state, info) = (&parked.tunnel().state, parked.tunnel().entry.info());
    let texts = [&info.host, &info.path].map(|text| text.as_deref().map_or(0, str::len));
    let names = info.group.pool.len() + info.group.backend.as_str().len();
    let requested = info.request_id.len() + info.method.len();
    let tls = [&state.client_tls, &state.backend_tls];
    let tls = tls.map(|tls| tls.as_deref().map_or(0, tls_size));
    let pending = state.up.pending.len() + state.down.pending.len();
    let variable: usize = texts.iter().chain(&tls).sum();
    FIXED_MAX + names + requested + pending + variable
}

/// How much the buffers of a TLS connection take.
pub(super) fn tls_size(tls: &StreamState) -> usize {
    tls.partial.len() + tls.plain.len() + tls.unsent.len()
}

/// Appends a tunnel to a batch.
pub(in crate::takeover) fn write_tunnel(writer: &mut Writer, parked: &dyn ParkedTunnel) {
    let info: &TunnelInfo = parked.tunnel().entry.info();
    writer.text(&info.group.pool);
    writer.text(info.group.backend.as_str());
    writer.text(&parked.backend().address.to_string());
    write_address(writer, info.client);
    let arrived = info.arrived.duration_since(SystemTime::UNIX_EPOCH);
    write_duration(writer, arrived.unwrap_or_default());
    writer.text(&info.request_id);
    writer.text(&info.method);
    writer.option(info.host.as_deref(), Writer::text);
    writer.option(info.path.as_deref(), Writer::text);
    writer.option(info.affinity, Writer::text);
    writer.option(info.attempts, |writer, attempts| {
        writer.u64(attempts.into());
    });
    writer.option(info.waited, write_duration);
    let age = parked.tunnel().entry.age();
    write_duration(writer, age.open);
    write_duration(writer, age.idle);
    writer.flag(age.half_closed);
    writer.u64(age.bytes_from_client);
    writer.u64(age.bytes_from_backend);
    write_duration(writer, parked.request_age());
    for source in parked.permit_sources() {
        writer.option(source, Writer::u64);
    }
    write_state(writer, &parked.tunnel().state);
}

fn write_state(writer: &mut Writer, state: &TunnelState) {
    writer.u8(match state.protocol {
        Protocol::Opaque => 0,
        Protocol::WebSocket => 1,
        Protocol::WebSocketWithHandoff => 2,
    });
    for flow in [&state.up, &state.down] {
        writer.bytes(&flow.pending);
        writer.option(flow.frames.as_ref(), |writer, frames| {
            writer.0.extend_from_slice(frames);
        });
        writer.u64(flow.bytes);
        writer.u8(match flow.phase {
            FlowPhase::Open => 0,
            FlowPhase::Done => 1,
            FlowPhase::Finishing(FlowEnd::Finished) => 2,
            FlowPhase::Finishing(FlowEnd::ReadFailed) => 3,
            FlowPhase::Finishing(FlowEnd::WriteFailed) => 4,
        });
    }
    let reason = state.end_reason.map(EndReason::as_str);
    writer.option(reason, Writer::text);
    writer.option(state.close_code, Writer::u16);
    for tls in [&state.client_tls, &state.backend_tls] {
        writer.option(tls.as_deref(), write_tls);
    }
}

pub(super) fn write_tls(writer: &mut Writer, tls: &StreamState) {
    let records = &tls.records;
    writer.flag(records.role == Role::Server);
    writer.u8(records.cipher);
    for direction in [&records.tx, &records.rx] {
        writer.0.extend_from_slice(&direction.key[..]);
        writer.0.extend_from_slice(&direction.iv[..]);
        writer.u64(direction.sequence);
        writer.option(direction.secret.as_ref(), |writer, secret| {
            writer.0.extend_from_slice(&secret[..]);
        });
    }
    writer.flag(records.tx_open);
    writer.flag(records.rx_open);
    writer.flag(records.update_due);
    writer.0.extend_from_slice(&records.counters);
    let (header, have, left) = records.message;
    writer.0.extend_from_slice(&header);
    writer.u8(have);
    writer.u16(left);
    for buffer in [&tls.partial, &tls.plain, &tls.unsent] {
        writer.bytes(buffer);
    }
}

fn write_duration(writer: &mut Writer, duration: Duration) {
    writer.u64(duration.as_micros().try_into().unwrap_or(u64::MAX));
}

fn write_address(writer: &mut Writer, address: IpAddr) {
    match address {
        IpAddr::V4(address) => writer.bytes(&address.octets()),
        IpAddr::V6(address) => writer.bytes(&address.octets()),
    }
}

pub(super) fn read_tunnel(reader: &mut Reader<'_>) -> Option<WireTunnel> {
    let text = |reader: &mut Reader<'_>| reader.text(TEXT_MAX);
    let boxed = |reader: &mut Reader<'_>| reader.text(TEXT_MAX).map(String::into_boxed_str);
    Some(WireTunnel {
        pool: text(reader)?,
        backend: text(reader)?,
        address: text(reader)?,
        client: read_address(reader)?,
        arrived: SystemTime::UNIX_EPOCH.checked_add(read_duration(reader)?)?,
        request_id: boxed(reader)?,
        method: boxed(reader)?,
        host: reader.option(boxed)?,
        path: reader.option(boxed)?,
        affinity: reader.option(text)?.and_then(|name| outcome(&name)),
        attempts: reader.option(|reader| reader.u64()?.try_into().ok())?,
        waited: reader.option(read_duration)?,
        age: TunnelAge {
            open: read_duration(reader)?,
            idle: read_duration(reader)?,
            half_closed: reader.flag()?,
            bytes_from_client: reader.u64()?,
            bytes_from_backend: reader.u64()?,
        },
        request_age: read_duration(reader)?,
        permit_sources: [reader.option(Reader::u64)?, reader.option(Reader::u64)?],
        state: read_state(reader)?,
    })
}

fn outcome(name: &str) -> Option<&'static str> {
    let all = [
        AffinityOutcome::Hit,
        AffinityOutcome::Miss,
        AffinityOutcome::Rebound,
    ];
    let names = all.map(AffinityOutcome::as_str);
    names.into_iter().find(|each| *each == name)
}

fn read_state(reader: &mut Reader<'_>) -> Option<TunnelState> {
    Some(TunnelState {
        protocol: match reader.u8()? {
            0 => Protocol::Opaque,
            1 => Protocol::WebSocket,
            2 => Protocol::WebSocketWithHandoff,
            _ => return None,
        },
        up: read_flow(reader)?,
        down: read_flow(reader)?,
        end_reason: match reader.option(|reader| reader.text(TEXT_MAX))? {
            Some(name) => Some(EndReason::named(&name)?),
            None => None,
        },
        close_code: reader.option(Reader::u16)?,
        client_tls: reader.option(read_tls)?,
        backend_tls: reader.option(read_tls)?,
    })
}

fn read_flow(reader: &mut Reader<'_>) -> Option<FlowState> {
    Some(FlowState {
        pending: reader.bytes()?,
        frames: reader.option(Reader::array)?,
        bytes: reader.u64()?,
        phase: match reader.u8()? {
            0 => FlowPhase::Open,
            1 => FlowPhase::Done,
            2 => FlowPhase::Finishing(FlowEnd::Finished),
            3 => FlowPhase::Finishing(FlowEnd::ReadFailed),
            4 => FlowPhase::Finishing(FlowEnd::WriteFailed),
            _ => return None,
        },
    })
}

pub(super) fn read_tls(reader: &mut Reader<'_>) -> Option<Box<StreamState>> {
    let records = RecordsState {
        role: match reader.flag()? {
            true => Role::Server,
            false => Role::Client,
        },
        cipher: reader.u8()?,
        tx: read_direction(reader)?,
        rx: read_direction(reader)?,
        tx_open: reader.flag()?,
        rx_open: reader.flag()?,
        update_due: reader.flag()?,
        counters: reader.array()?,
        message: (reader.array()?, reader.u8()?, reader.u16()?),
    };
    Some(Box::new(StreamState {
        records,
        partial: reader.bytes()?,
        plain: reader.bytes()?,
        unsent: reader.bytes()?,
    }))
}

fn read_direction(reader: &mut Reader<'_>) -> Option<DirectionState> {
    Some(DirectionState {
        key: read_secret(reader)?,
        iv: read_secret(reader)?,
        sequence: reader.u64()?,
        secret: reader.option(read_secret)?,
    })
}

/// Bytes that are copied to where they are wiped, and nowhere else.
fn read_secret<const N: usize>(reader: &mut Reader<'_>) -> Option<Zeroizing<[u8; N]>> {
    let mut secret = Zeroizing::new([0; N]);
    secret.copy_from_slice(reader.take(N)?);
    Some(secret)
}

fn read_duration(reader: &mut Reader<'_>) -> Option<Duration> {
    reader.u64().map(Duration::from_micros)
}

fn read_address(reader: &mut Reader<'_>) -> Option<IpAddr> {
    let bytes = reader.bytes()?;
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        _ => None,
    }
}
