// The page of `xgfm view`. All texts of the store are put in as text, never as HTML.
"use strict";

const at = (id) => document.getElementById(id);
const MORE = 5; // zooms beyond the one where a pixel of the map is one of the screen
const WATCH = 15000; // milliseconds after which a running job is looked at again

function element(tag, text, parts = {}) {
  const made = Object.assign(document.createElement(tag), parts);
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, parameters) {
  const answer = await fetch(`${path}?${new URLSearchParams(parameters)}`);
  const said = await answer.json();
  if (!answer.ok) throw new Error(said.error);
  return said;
}

class Page {
  constructor(about) {
    this.about = about;
    this.hidden = new Set();
    this.asked = 0;
    this.map = L.map("map", { maxZoom: about.zooms.native + MORE, fadeAnimation: false });
    this.map.attributionControl.setPrefix("Leaflet");
    L.control.scale({ imperial: false }).addTo(this.map);
    this.fillPanel();
    this.firstView();
    this.addTiles();
    this.chooseLayer();
    this.map.on("click", (event) => this.tell(event.latlng));
    this.map.on("moveend", () => this.moved());
    this.moved();
  }

  get layer() { return this.about.layers[at("layer").selectedIndex]; }
  get isMap() { return this.layer.classes.length > 0; }

  // ---- the panel

  fillPanel() {
    const { title, grid, notes, layers, times, under, blocks } = this.about;
    document.title = `${title} - xgfm`;
    at("title").textContent = title;
    at("grid").textContent = grid;
    at("notes").append(...notes.map((note) => element("p", note)));
    at("layer").append(...layers.map((layer) => element("option", layer.title, { value: layer.name })));
    at("layer-row").hidden = layers.length < 2;
    at("layer").onchange = () => this.chooseLayer();
    at("number").onchange = () => this.redraw();
    at("opacity").oninput = () => this.tiles.setOpacity(at("opacity").value / 100);
    at("all").onclick = () => this.hide([]);
    at("none").onclick = () => this.hide(this.layer.classes.map((each) => each.value));
    this.slider("time", times, () => { this.redraw(); this.measure(); });
    at("under-row").hidden = under === null;
    if (under !== null) {
      this.slider("under-time", under.times, () => this.under.setUrl(this.underUrl()));
      at("under").onchange = () => (at("under").checked ? this.under.addTo(this.map) : this.under.remove());
    }
    at("blocks-row").hidden = blocks === null;
    if (blocks !== null) this.fillBlocks(blocks);
  }

  slider(id, names, changed) {
    const show = () => { at(`${id}-name`).textContent = names[at(id).value]; };
    at(`${id}-row`).hidden = names.length < 2;
    at(id).max = Math.max(names.length - 1, 0);
    at(id).oninput = show;
    at(id).onchange = () => { show(); changed(); };
    if (names.length) show();
  }

  fillBlocks(counts) {
    this.countBlocks(counts);
    this.blocks = L.geoJSON(null, {
      style: (feature) => ({ color: feature.properties.color, weight: 1.5, fillOpacity: 0.25 }),
      interactive: false,
    });
    at("blocks").onchange = () => {
      if (at("blocks").checked) this.blocks.addTo(this.map);
      else this.blocks.remove();
      this.drawBlocks();
    };
  }

  countBlocks(counts) {
    at("block-legend").replaceChildren(...counts.filter((each) => each.blocks).map((each) => {
      const row = element("li");
      row.append(this.swatch(each.color), `${each.outcome}: ${each.blocks.toLocaleString("en")}`);
      return row;
    }));
  }

  chooseLayer() {
    const layer = this.layer;
    at("number").replaceChildren(...layer.numbers.map((name) => element("option", name)));
    at("number-row").hidden = layer.numbers.length === 0;
    at("time-row").hidden = !layer.dims.includes("time") || this.about.times.length < 2;
    at("classes").hidden = !this.isMap;
    at("scale").hidden = this.isMap;
    this.hidden.clear();
    if (this.isMap) this.fillLegend(layer);
    else this.fillScale(layer);
    this.redraw();
    this.measure();
  }

  fillLegend(layer) {
    at("legend").replaceChildren(...layer.classes.map((each) => {
      const [row, name, box] = [element("tr"), element("label"), element("input", undefined, { type: "checkbox", checked: true })];
      row.dataset.value = each.value;
      box.onchange = () => {
        if (box.checked) this.hidden.delete(each.value);
        else this.hidden.add(each.value);
        name.classList.toggle("off", !box.checked);
        this.redraw();
      };
      name.append(box, this.swatch(each.color), each.name);
      const cell = element("td");
      cell.append(name);
      row.append(cell, element("td", "", { className: "km2" }), element("td", "", { className: "share" }));
      return row;
    }));
  }

  fillScale(layer) {
    at("ramp").style.background = `linear-gradient(to right, ${this.about.ramp.join(",")})`;
    at("low").textContent = `${number(layer.range[0])} ${layer.units}`;
    at("high").textContent = `${number(layer.range[1])} ${layer.units}`;
  }

  hide(values) {
    this.hidden = new Set(values);
    for (const row of at("legend").rows) {
      const shown = !this.hidden.has(Number(row.dataset.value));
      row.querySelector("input").checked = shown;
      row.querySelector("label").classList.toggle("off", !shown);
    }
    this.redraw();
  }

  swatch(color) {
    const made = element("span", undefined, { className: "swatch" });
    made.style.background = color;
    return made;
  }

  // ---- the map

  firstView() {
    const { bounds, zooms } = this.about;
    this.map.fitBounds(bounds, { animate: false });
    // Without overviews a part of the map is seen at once, not nothing.
    if (this.map.getZoom() < zooms.least) this.map.setView(L.latLngBounds(bounds).getCenter(), zooms.least, { animate: false });
  }

  addTiles() {
    const { zooms, bounds, under } = this.about;
    const options = { maxNativeZoom: zooms.native + 2, maxZoom: zooms.native + MORE, bounds: L.latLngBounds(bounds).pad(0.01) };
    if (under !== null) this.under = L.tileLayer(this.underUrl(), { ...options, minZoom: under.least, zIndex: 1 }).addTo(this.map);
    this.tiles = L.tileLayer(this.url(), { ...options, minZoom: zooms.least, zIndex: 2 });
    const busy = (state) => at("map").setAttribute("aria-busy", state);
    this.tiles.on("loading", () => busy(true)).on("load", () => busy(false));
    this.tiles.addTo(this.map);
  }

  url() {
    const asked = { time: at("time").value, class: Math.max(at("number").selectedIndex, 0), hide: [...this.hidden].join(",") };
    return `tiles/${encodeURIComponent(this.layer.name)}/{z}/{x}/{y}.png?${new URLSearchParams(asked)}`;
  }

  underUrl() { return `under/{z}/{x}/{y}.png?time=${at("under-time").value}`; }

  redraw() { this.tiles.setUrl(this.url()); }

  moved() {
    const far = this.map.getZoom() < this.about.zooms.least;
    at("hint").textContent = this.about.hint;
    at("hint").hidden = !this.about.hint || !far;
    this.measure();
    if (this.blocks) this.drawBlocks();
  }

  view() {
    const seen = this.map.getBounds();
    return [seen.getWest(), seen.getSouth(), seen.getEast(), seen.getNorth()].join(",");
  }

  async measure() {
    const turn = ++this.asked;
    if (!this.isMap) return;
    at("area-note").textContent = "measuring ...";
    let said;
    try { said = await ask("area.json", { layer: this.layer.name, time: at("time").value, bbox: this.view() }); }
    catch (error) { said = { note: error.message, shares: [] }; }
    if (turn !== this.asked) return; // the view has moved on
    const found = new Map(said.shares.map((each) => [each.value, each]));
    for (const row of at("legend").rows) {
      const each = found.get(Number(row.dataset.value));
      row.querySelector(".km2").textContent = each ? number(each.km2) : "";
      row.querySelector(".share").textContent = each ? `${(100 * each.share).toFixed(1)} %` : "";
    }
    at("area-note").textContent = said.note;
  }

  async drawBlocks() {
    clearTimeout(this.again);
    if (!at("blocks").checked) return;
    const found = await ask("blocks.json", { bbox: this.view() });
    this.blocks.clearLayers().addData(found);
    this.countBlocks(found.counts);
    // A job that is not through is watched.
    const missing = found.counts.some((each) => each.outcome === "missing" && each.blocks);
    clearTimeout(this.again);
    if (missing) this.again = setTimeout(() => { this.redraw(); this.drawBlocks(); }, WATCH);
  }

  // ---- a click

  async tell(place) {
    const { lng, lat } = place.wrap();
    let body;
    try { body = this.said(await ask("value.json", { lon: lng, lat, time: at("time").value })); }
    catch (error) { body = element("p", error.message); }
    L.popup({ maxHeight: 320 }).setLatLng(place).setContent(body).openOn(this.map);
  }

  said(found) {
    const box = element("div", undefined, { className: "popup" });
    for (const layer of this.about.layers) {
      const value = found.values[layer.name];
      if (Array.isArray(value)) box.append(this.shares(layer, value));
      else box.append(this.line(layer, value));
    }
    if (found.block) box.append(element("p", `block ${found.block.id}: ${found.block.outcome}${found.block.reason ? `, ${found.block.reason}` : ""}`));
    const pixel = found.row === undefined ? "outside of the map" : `row ${found.row}, column ${found.column}${found.sheet ? ` of ${found.sheet}` : ""}`;
    box.append(element("p", `${found.lat.toFixed(5)}, ${found.lon.toFixed(5)}: ${pixel}`, { className: "small" }));
    return box;
  }

  line(layer, value) {
    const line = element("div", undefined, { className: "value" });
    line.dataset.layer = layer.name;
    const each = layer.classes.find((one) => one.value === value);
    if (each) line.append(this.swatch(each.color), element("b", each.name));
    else line.textContent = value === null || value === undefined ? `${layer.title}: no data` : `${layer.title}: ${number(value)} ${layer.units}`;
    return line;
  }

  shares(layer, values) {
    const table = element("table");
    table.dataset.layer = layer.name;
    table.append(...values.map((value, i) => {
      const row = element("tr");
      const bar = element("span", undefined, { className: "bar" });
      bar.style.width = layer.name === "probability" ? `${60 * Math.min(Math.max(value, 0), 1)}px` : "0";
      const cell = element("td");
      cell.append(bar, ` ${value === null ? "-" : value.toFixed(3)}`);
      row.append(element("td", layer.numbers[i]), cell);
      return row;
    }));
    return table;
  }
}

function number(value) {
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 3;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

ask("map.json", {}).then((about) => { window.page = new Page(about); }).catch((error) => {
  at("hint").textContent = error.message;
  at("hint").hidden = false;
});
