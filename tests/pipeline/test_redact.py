"""What may be shown of a URL, and of a message that quotes one."""

from __future__ import annotations

import pytest

from cope_prep.pipeline.redact import redacted


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://bucket/data set/a.mp4", "s3://bucket/data set/a.mp4"),
        ("/data/178k@home/clip.mp4", "/data/178k@home/clip.mp4"),
        ("s3://bucket/people@work/a.mp4", "s3://bucket/people@work/a.mp4"),
        ("abfs://videos@account.dfs.core.windows.net/x", "abfs://videos@account.dfs.core.windows.net/x"),
        ("memory://demo: has no output of shards", "memory://demo: has no output of shards"),
        ("http://host:8080/index.parquet", "http://host:8080/index.parquet"),
        ("SourceNotFoundError: no such file", "SourceNotFoundError: no such file"),
        *(
            (text, text)
            for text in (
                "/etc/passwd: no video",
                "tokens: 210",
                "picture_tokens=729",
                "token budget: 4096",
                "has no tokenizer: neither tokenizer.json nor vocab.json",
                "tokenizer_config.json: is no JSON",
                "credentials: not found",
                "secret_garden/a.mp4: not one frame decodes",
                "clips/token-12: not one frame decodes",
                "Basic authentication is off",
                "bearer of bad news",
                "memory://demo: mail to a@b",
                "my-token-video: is empty",
                "http://minio:9000/bucket/@handle/v.mp4",
                "http://[::1]:5000/a@b",
                "ray://10.0.0.1:10001 is not reachable, write to a@b",
                "http://10.0.0.1:8265, or write to a@b",
                "is there a clip at s3://bucket/a.mp4?",
                "https://host/page.html#chapter-2",
                "http://host:8080/a.parquet, http://host:8080/b.parquet",
            )
        ),
    ],
)
def test_what_is_no_secret_stays(text: str, shown: str) -> None:
    assert redacted(text) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://KEY:SECRET@bucket/a", "s3://***@bucket/a"),
        ("s3://KEY:SEC/RET/x@bucket/a", "s3://***@bucket/a"),
        ("s3://KEY:1/SECRET@bucket/a", "s3://***@bucket/a"),
        ('s3://KEY:SE"CRET-SECRET@bucket/a', "s3://***@bucket/a"),
        ("s3://KEY:SE'CRET-SECRET@bucket/a", "s3://***@bucket/a"),
        ("https://bob:SECRET<1@host/a", "https://***@host/a"),
        ("http://bob:8080SECRET@host:80/a", "http://***@host:80/a"),
        ("zip://a.mp4::https://bob:SECRET@host/a.zip", "zip://a.mp4::https://***@host/a.zip"),
        ("https://host/a.mp4?SECRET", "https://host/a.mp4?***"),
        ('https://host/a.mp4?sig=a"SECRET', "https://host/a.mp4?***"),
        ("https://host/a?b'c=SECRET", "https://host/a?***"),
        ("https://host/a.mp4?X-Amz-Signature%3DSECRET", "https://host/a.mp4?***"),
        ("https://host/a.mp4#access=SECRET", "https://host/a.mp4#***"),
        ("X-Auth-Token: SECRET", "X-Auth-Token: ***"),
        ("ftp://TOKEN@host/a", "ftp://***@host/a"),
        ("abfs://NAME:KEY@host/a", "abfs://***@host/a"),
        ("https://host/a.mp4?X-Amz-Signature=SECRET&X=1", "https://host/a.mp4?***"),
        ("('https://host/a?sig=SECRET') refused", "('https://host/a?***') refused"),
        ("AccountName=me;AccountKey=SECRET==;x", "AccountName=me;AccountKey=***;x"),
        ("aws_secret_access_key = 'SECRET'", "aws_secret_access_key = '***'"),
        ("token: SECRET", "token: ***"),
        ("{'aws_secret_access_key': 'SECRET'}", "{'aws_secret_access_key': '***'}"),
        ('{"client_secret": "SECRET"}', '{"client_secret": "***"}'),
        (r'{"password": "a\"SECRET b", "x": 1}', '{"password": "***", "x": 1}'),
        ("{'token': b'SECRET x', 'y': 2}", "{'token': b'***', 'y': 2}"),
        ("Authorization: Bearer SECRET", "Authorization: ***"),
        ('{"Authorization": "Basic SECRET="}', '{"Authorization": "***"}'),
        ("sent Bearer eySECRET1.x-y_z", "sent Bearer ***"),
        ("blob?sv=2020&sig=SECRET%3D", "blob?sv=2020&sig=***"),
        ("sftp://bob:pa SECRET@host/x", "sftp://***@host/x"),
        ("password: my SECRET word", "password: ***"),
        ("mysql --password=SECRET", "mysql --password=***"),
        ("fs.s3a.secret.key=SECRET", "fs.s3a.secret.key=***"),
        ("for AKIASECRET1234567890 in us-east-1", "for *** in us-east-1"),
        ('Invalid bucket name "AKIASECRET1234567890:SEC/RET@bucket"', 'Invalid bucket name "***@bucket"'),
        ("Invalid bucket name 'bob:SECRET@bucket'", "Invalid bucket name '***@bucket'"),
    ],
)
def test_credentials_do_not_show(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert "SECRET" not in redacted(text)
    assert redacted(shown) == shown  # text may pass several places that hide
