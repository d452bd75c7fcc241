"""Files that point at other files or addresses, in all ways that FFmpeg knows; and who watches if it goes there."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_IN_OPEN = 0x20  # linux/inotify.h


class OpenWatch:
    """Tells whether anybody has opened a file since it was asked last."""

    def __init__(self, path: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.inotify_init1(os.O_NONBLOCK)
        if self._libc.inotify_add_watch(self._descriptor, os.fsencode(path), _IN_OPEN) < 0:
            raise OSError(ctypes.get_errno(), "inotify_add_watch")

    def was_opened(self) -> bool:
        try:
            return bool(os.read(self._descriptor, 4096))
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self._descriptor)


class WebServer:
    """A server on this machine that writes down what it is asked for; it serves one file, whatever the path."""

    def __init__(self, content: bytes) -> None:
        self.requests: list[str] = []
        log = self.requests

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                log.append(self.path)
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


Maker = Callable[[str, bytes], bytes]
"""(where to, an MP4) -> a file that points there."""


def hls(target: str, clip: bytes) -> bytes:
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()


def hls_key(target: str, clip: bytes) -> bytes:
    key = f'#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n'
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n{key}#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n".encode()


def hls_of_playlists(target: str, clip: bytes) -> bytes:
    return f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=9\n{target}.m3u8\n".encode()


def concat_script(target: str, clip: bytes) -> bytes:
    return f"ffconcat version 1.0\nfile '{target}'\n".encode()


def dash(target: str, clip: bytes) -> bytes:
    return (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT9S" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="9">'
        f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>"
    ).encode()


def sdp(target: str, clip: bytes) -> bytes:
    return b"v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\nm=video 5004 RTP/AVP 96\r\n"


def smooth_streaming(target: str, clip: bytes) -> bytes:
    return f'<asx version="3.0"><entry><ref href="{target}"/></entry></asx>'.encode()


def real_media_link(target: str, clip: bytes) -> bytes:
    return f"{target}\n".encode()


def image_sequence(target: str, clip: bytes) -> bytes:
    return b"\xff\xd8\xff\xe0" + bytes(200)


def quicktime_alias(target: str, clip: bytes) -> bytes:
    """The media of the track are in another file, by a Macintosh alias record."""
    path = target.encode()
    path += b"\0" * (len(path) % 2)
    name = os.path.basename(target).encode()[:63]
    alias = bytes(10 + 1 + 27 + 12)
    alias += bytes([len(name)]) + name.ljust(63, b"\0") + bytes(16) + bytes(4 + 16)
    alias += struct.pack(">HH", 2, len(path)) + path + struct.pack(">HH", 0xFFFF, 0)
    entry = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    return with_box(
        clip, (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"), struct.pack(">II", 0, 1) + entry
    )


def quicktime_url(target: str, clip: bytes) -> bytes:
    """As the standard has it: a data reference that is a URL."""
    url = target.encode() + b"\0"
    entry = struct.pack(">I4sI", 12 + len(url), b"url ", 0) + url
    return with_box(
        clip, (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"), struct.pack(">II", 0, 1) + entry
    )


def quicktime_reference_movie(target: str, clip: bytes) -> bytes:
    """No media at all, only the address of another movie."""
    url = target.encode() + b"\0"
    rdrf = struct.pack(">I4sI4sI", 20 + len(url), b"rdrf", 0, b"url ", len(url)) + url
    rmda = struct.pack(">I4s", 8 + len(rdrf), b"rmda") + rdrf
    rmra = struct.pack(">I4s", 8 + len(rmda), b"rmra") + rmda
    moov = struct.pack(">I4s", 8 + len(rmra), b"moov") + rmra
    return struct.pack(">I4s4sI4s", 20, b"ftyp", b"qt  ", 0, b"qt  ") + moov


def playlist_in_subtitles(target: str, clip: bytes) -> bytes:
    """An AVI whose subtitle track (GAB2) is a playlist: FFmpeg opens a second demuxer for it."""
    text = hls(target, clip)
    gab2 = b"GAB2\0" + struct.pack("<HI", 2, 2) + b"x\0" + struct.pack("<HI", 4, len(text)) + text
    avih = struct.pack("<14I", 33_333, 0, 0, 0, 1, 0, 2, 0, 32, 32, 0, 0, 0, 0)
    video = _strl(b"vids", b"mp4v", struct.pack("<IiiHH4sIiiII", 40, 32, 32, 1, 24, b"mp4v", 0, 0, 0, 0, 0))
    header = _chunk(b"avih", avih) + video + _strl(b"txts", b"\0\0\0\0", b"")
    movi = _chunk(b"01tx", gab2) + _chunk(b"00dc", bytes(64))
    return _chunk(b"RIFF", b"AVI " + _chunk(b"LIST", b"hdrl" + header) + _chunk(b"LIST", b"movi" + movi))


def _strl(kind: bytes, handler: bytes, form: bytes) -> bytes:
    header = kind + handler + struct.pack("<10I8x", 0, 0, 0, 1, 30, 0, 1, 0, 0, 0)
    return _chunk(b"LIST", b"strl" + _chunk(b"strh", header) + _chunk(b"strf", form))


def _chunk(name: bytes, content: bytes) -> bytes:
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def with_box(data: bytes, path: tuple[bytes, ...], content: bytes) -> bytes:
    """An MP4 with another content of one box, and the sizes of those around it set right."""
    out, at = b"", 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        inner = data[at + 8 : at + size]
        if kind == path[0]:
            inner = with_box(inner, path[1:], content) if len(path) > 1 else content
        out += struct.pack(">I4s", 8 + len(inner), kind) + inner
        at += size
    return out
