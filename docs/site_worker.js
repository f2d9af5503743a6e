// Search where the site is opened from disk: browsers start no worker there, so the worker's script
// runs in a hidden frame that looks like one. Nothing is fetched but the site's own files.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      this.waiting = [];
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.documentElement.appendChild(frame);
      const inside = frame.contentWindow, page = frame.contentDocument;
      const later = (target, data) =>
        setTimeout(() => target.dispatchEvent(new MessageEvent("message", { data })));
      inside.postMessage = (data) => later(this, data);
      inside.importScripts = (...urls) => Promise.all(urls.map((one) => this.load(page, one)));
      this.postMessage = (data) => this.waiting.push(data);
      const script = this.load(page, new URL(url, location.href).href);
      const index = window.__index;
      if (index) inside.__index = index;
      script.then(() => {
        this.postMessage = (data) => later(inside, data);
        this.waiting.forEach(this.postMessage);
      });
      this.terminate = () => frame.remove();
    }
    load(page, url) {
      return new Promise((done, failed) => {
        const script = page.createElement("script");
        Object.assign(script, { src: url, onload: done, onerror: failed });
        (page.body || page.documentElement).appendChild(script);
      });
    }
  };
}
