"""deploy/azure/prices against a stand-in for Azure's price list, shaped as Azure documents it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import tomllib
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

AZURE = Path(__file__).resolve().parents[1] / "deploy" / "azure"


class PriceList:
    """Serves pages in the shape that Azure documents for its price list; a stand-in for it."""

    def __init__(self, pages: list[object]) -> None:
        self.asked: list[str] = []
        outer = self

        class Page(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append(self.path)
                number = int(parse_qs(urlsplit(self.path).query).get("$skip", ["0"])[0])
                page = pages[number]
                if isinstance(page, list):
                    last = number == len(pages) - 1
                    follow = None if last else f"{outer.url}?$skip={number + 1}"
                    page = {"BillingCurrency": "USD", "CustomerEntityId": "Default",
                            "CustomerEntityType": "Retail", "Items": page,
                            "NextPageLink": follow, "Count": len(page)}
                body = page if isinstance(page, bytes) else json.dumps(page).encode()
                self.send_response(200)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass
        self.server = HTTPServer(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self.server.server_port}/api/retail/prices"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def price(region: str, dollars: float, kind: str = "", product: str = "Dasv5 Series",
          since: str = "2024-01-01T00:00:00Z", **more: object) -> dict[str, object]:
    """A price, with the fields that Azure documents."""
    return {"currencyCode": "USD", "tierMinimumUnits": 0.0, "retailPrice": dollars,
            "unitPrice": dollars, "armRegionName": region, "location": "somewhere",
            "effectiveStartDate": since, "meterId": "0", "meterName": f"D2as v5{kind}",
            "productId": "0", "skuId": "0", "productName": f"Virtual Machines {product}",
            "skuName": f"D2as v5{kind}", "serviceName": "Virtual Machines", "serviceId": "0",
            "serviceFamily": "Compute", "unitOfMeasure": "1 Hour", "type": "Consumption",
            "isPrimaryMeterRegion": True, "armSkuName": "Standard_D2as_v5"} | more


def renew(tmp_path: Path, pages: list[object], *words: str) -> tuple[int, str, Path, list[str]]:
    """Run deploy/azure/prices on a copy of regions.toml."""
    file = tmp_path / "regions.toml"
    shutil.copy(AZURE / "regions.toml", file)
    prices = PriceList(pages)
    try:
        done = subprocess.run(
            [sys.executable, str(AZURE / "prices"), "--url", prices.url, "--file", str(file),
             *words], capture_output=True, text=True, timeout=30)
    finally:
        prices.close()
    assert [each.name for each in tmp_path.iterdir()] == ["regions.toml"]
    return done.returncode, done.stderr, file, prices.asked


def test_prices_are_fetched(tmp_path: Path) -> None:
    known = tomllib.loads((AZURE / "regions.toml").read_text())
    places = [each["azure"] for each in known["region"]]
    first = [price(place, 0.2) for place in places]
    second = [price(place, 0.05, " Spot") for place in places] + [
        price("westus2", 0.01, product="Dasv5 Series Windows"),
        price("westus2", 0.01, " Low Priority"),
        price("westus2", 0.3, " Spot", since="2023-01-01T00:00:00Z"),  # an older one
        price("westus2", 0.4, " Spot", since="2100-01-01T00:00:00Z"),  # not yet
        price("westus2", 0.0, since="2025-01-01T00:00:00Z"),  # a slip
        price("westus2", 7.0, unitOfMeasure="1 Month"),
        price("westus2", 7.0, currencyCode="EUR")]
    status, said, file, asked = renew(tmp_path, [first, second], "--size", "Standard_D2as_v5")
    assert status == 0, said
    assert len(asked) == 2
    assert parse_qs(urlsplit(asked[0]).query)["$filter"] == [
        "serviceName eq 'Virtual Machines' and armSkuName eq 'Standard_D2as_v5' "
        "and priceType eq 'Consumption'"]
    new = tomllib.loads(file.read_text())
    for each, old in zip(new["region"], known["region"], strict=True):
        assert each == old | {"on_demand": 0.2, "spot": 0.05, "source": "azure"}
    assert new["noted"] == datetime.now(UTC).date().isoformat()
    assert file.read_text().startswith("# Where the machines are")  # the comments stay


def test_a_region_that_does_not_sell_it_keeps_its_price(tmp_path: Path) -> None:
    known = tomllib.loads((AZURE / "regions.toml").read_text())["region"]
    items = [price(each["azure"], 0.2, kind) for each in known if each["name"] != "Taipei"
             for kind in ("", " Spot")]
    status, said, file, _ = renew(tmp_path, [items], "--size", "Standard_F1s")
    assert status == 3
    assert "is not sold in: Taipei" in said
    new = tomllib.loads(file.read_text())
    assert new["size"] == "Standard_F1s"
    taipei = next(each for each in new["region"] if each["name"] == "Taipei")
    assert taipei == next(each for each in known if each["name"] == "Taipei")


@pytest.mark.parametrize(("page", "status", "sentence"), [
    (b"<html>", 6, "Cannot read Azure's price list"),
    ({"Items": []}, 6, "Cannot read Azure's price list"),
    ([], 3, "has no size"),
    ([{"skuName": "x"}], 6, "is not the documented price list"),
    ({"Items": [], "NextPageLink": "http://127.0.0.1:1/"}, 6, "goes on elsewhere"),
])
def test_what_is_no_price_list_changes_nothing(
    tmp_path: Path, page: object, status: int, sentence: str
) -> None:
    got, said, file, _ = renew(tmp_path, [page])
    assert got == status, said
    assert sentence in said
    assert "regions.toml is as it was" in said
    assert file.read_bytes() == (AZURE / "regions.toml").read_bytes()
