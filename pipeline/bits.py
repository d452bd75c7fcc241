"""Just enough of MPEG-4 part 2 headers to read a P-VOP's rounding control (ISO/IEC 14496-2, 6.2.3 and 6.2.5).

`vop_rounding_type` decides how half-pel means are rounded. It stands after the time stamp in the VOP header,
whose length depends on `vop_time_increment_resolution` in the VOL header.
"""

from __future__ import annotations

from cope_prep.schemas.errors import BitstreamError

_P_VOP = 1
_EXTENDED_PAR = 15


class BitReader:
    """Reads big-endian bit fields from bytes."""

    def __init__(self, data: bytes, start_bytes: int) -> None:
        self._data = data
        self._bit = start_bytes * 8

    def read(self, num_bits: int) -> int:
        """The next bits as an unsigned number.

        Raises:
            EOFError: the data ends first.
        """
        end = self._bit + num_bits
        if end > len(self._data) * 8:
            raise EOFError(f"a bit field ends at bit {end} of {len(self._data) * 8}")
        first, last = self._bit // 8, (end + 7) // 8
        value = int.from_bytes(self._data[first:last], "big") >> (last * 8 - end)
        self._bit = end
        return value & ((1 << num_bits) - 1)


class VopParser:
    """Reads the rounding control of each VOP of a stream.

    Raises:
        BitstreamError: there is no VOL header in the stream's extradata, or it is cut short.
    """

    def __init__(self, extradata: bytes) -> None:
        """`extradata` holds the visual object sequence up to the VOL header."""
        start = next((at for at in _start_codes(extradata) if 0x20 <= extradata[at + 3] <= 0x2F), None)
        if start is None:
            raise BitstreamError("MPEG-4 stream", "has no VOL header in its extradata")
        try:
            resolution = _time_increment_resolution(BitReader(extradata, start + 4))
        except EOFError as exc:
            raise BitstreamError("MPEG-4 stream", f"has a VOL header that is cut short ({exc})") from exc
        self._increment_bits = max(1, (resolution - 1).bit_length())

    def rounding(self, packet: bytes) -> int:
        """`vop_rounding_type` of a packet's VOP; 0 for I-VOPs, VOPs that are not coded, and garbage."""
        start = packet.find(b"\0\0\1\xb6")
        if start < 0:
            return 0
        reader = BitReader(packet, start + 4)
        try:
            coding_type = reader.read(2)
            while reader.read(1):  # modulo_time_base: one 1 for each full second
                pass
            reader.read(1)
            reader.read(self._increment_bits)
            reader.read(1)
            is_coded = reader.read(1)
            return reader.read(1) if is_coded and coding_type == _P_VOP else 0
        except EOFError:
            return 0


def _start_codes(data: bytes) -> list[int]:
    """Positions of 00 00 01 xx."""
    found = []
    at = data.find(b"\0\0\1")
    while 0 <= at < len(data) - 3:
        found.append(at)
        at = data.find(b"\0\0\1", at + 3)
    return found


def _time_increment_resolution(reader: BitReader) -> int:
    reader.read(1)  # random_accessible_vol
    reader.read(8)  # video_object_type_indication
    if reader.read(1):  # is_object_layer_identifier
        reader.read(4 + 3)
    if reader.read(4) == _EXTENDED_PAR:
        reader.read(8 + 8)
    if reader.read(1):  # vol_control_parameters
        reader.read(2 + 1)
        if reader.read(1):  # vbv_parameters
            reader.read(79)
    reader.read(2)  # video_object_layer_shape: rectangular in all that EncodeSpec makes
    reader.read(1)  # marker
    return reader.read(16)
