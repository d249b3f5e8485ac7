// Browsers start no worker from a file:// page, and the search is one: there, its script runs in a hidden frame.
if (location.protocol === 'file:') {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement('iframe');
      frame.hidden = true;
      const started = new Promise((resolve) => {
        frame.onload = resolve;
      });
      const script = new URL(url, location.href).href.replace(/"/g, '&quot;');
      frame.srcdoc = `<script>self.postMessage = (data) => parent.dispatchEvent(
        new CustomEvent('iframe-worker', { detail: { frame: frameElement, data } }))<\/script><script src="${script}"><\/script>`;
      addEventListener('iframe-worker', ({ detail }) => {
        if (detail.frame === frame) this.dispatchEvent(new MessageEvent('message', { data: detail.data }));
      });
      document.body.append(frame);
      this.postMessage = (data) => started.then(() => {
        frame.contentWindow.dispatchEvent(new MessageEvent('message', { data }));
      });
    }
  };
}
